"""Journalled replies against a judge: which are acceptable, and which candidates still wait for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from declip_runtime.errors import ImageNotFoundError

from .candidates import Candidate
from .journal import Reply
from .pictures import file_sha256
from .reply import Descriptions, Judge, ReplyError


def judge_replies(judge: Judge, replies: Iterable[Reply]) -> tuple[Descriptions | None, str, Reply | None]:
    """The first acceptable of some replies; or None, why the last one is not, and that one."""
    reason, last = "", None
    for last in replies:
        try:
            return judge.accept(last.text), "", last
        except ReplyError as error:
            limit = " (cut off at its limit of tokens, which --max-tokens raises)" if last.finish == "length" else ""
            reason = f"{error}{limit}"
    return None, reason, last


def present(
    candidates: Iterable[Candidate],
    replies: Mapping[str, Sequence[Reply]],
    advance: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[Reply]], int]:
    """Replies by candidate, but for those to an image file that was replaced since; and how many candidates have lost
    all of theirs so. Where there is no file, nothing is known, and they stay. ``advance`` is called after each image.
    """
    kept: dict[str, list[Reply]] = {}
    lost = 0
    for candidate in candidates:
        if held := replies.get(candidate.id):
            try:
                seen = file_sha256(Path(candidate.image))
            except ImageNotFoundError:
                seen = None
            kept[candidate.id] = [reply for reply in held if seen is None or reply.image_sha256 == seen]
            lost += not kept[candidate.id]
            advance()
    return kept, lost


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
