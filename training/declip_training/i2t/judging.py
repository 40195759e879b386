"""Journalled replies against a judge: which are acceptable, and which candidates still wait for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .candidates import Candidate
from .journal import Reply
from .reply import Descriptions, Judge, ReplyError


def judge_replies(judge: Judge, replies: Iterable[Reply]) -> tuple[Descriptions | None, str, Reply | None]:
    """The first acceptable of some replies; or None, why the last one is not, and that one."""
    reason, last = "", None
    for last in replies:
        try:
            return judge.accept(last.text), "", last
        except ReplyError as error:
            limit = " (cut off at the model's token limit)" if last.finish == "length" else ""
            reason = f"{error}{limit}"
    return None, reason, last


def pending(
    candidates: Iterable[Candidate], replies: Mapping[str, Sequence[Reply]], judge: Judge, attempts: int
) -> list[Candidate]:
    """Candidates that have no acceptable one among their ``replies`` (by id) and attempts left."""

    def waits(candidate: Candidate) -> bool:
        held = replies.get(candidate.id, ())
        return len(held) < attempts and judge_replies(judge, held)[0] is None

    return [candidate for candidate in candidates if waits(candidate)]


def first_or_settled(
    candidates: Sequence[Candidate],
    first: int | None,
    replies: Mapping[str, Sequence[Reply]],
    judge: Judge,
    attempts: int,
) -> list[Candidate]:
    """The ``first`` candidates (None: all), and the others for which nothing is to be asked any more."""
    if first is None:
        return list(candidates)
    waiting = {candidate.id for candidate in pending(candidates[first:], replies, judge, attempts)}
    return [candidate for candidate in candidates if candidate.id not in waiting]
