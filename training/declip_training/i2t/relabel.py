"""Relabelling: a vision-language model writes a perceptual and a semantic description of every candidate."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue

from declip_runtime.errors import ImageError, ImageNotFoundError, TrainingError

from .answer import Answer
from .candidates import Candidate
from .endpoint import Endpoint, RefusedError, StoppedError, UnansweredError
from .journal import Journal, Reply
from .judging import judge_replies
from .pictures import data_url, file_sha256
from .prompt import Prompt
from .records import Record
from .reply import Descriptions, Judge

_FAILURES_IN_A_ROW = 5
_ALL_UNUSABLE = 20
"""So many images whose replies are all paid for in vain, and none before: the rest would be as well."""


@dataclass(frozen=True)
class RelabelOptions:
    """Longest side of the image that is sent in pixels, replies that are paid for at most, requests at a time."""

    max_side: int = 768
    attempts: int = 3
    workers: int = 8


@dataclass(frozen=True)
class SetAside:
    """A candidate without descriptions: why, how many replies were tried, and the last of them.

    ``final`` False: it was not answered, and the next run asks again.
    """

    candidate: Candidate
    reason: str
    attempts: int
    reply: str
    final: bool


@dataclass
class Outcome:
    """What became of the candidates.

    ``asked`` are the replies of this run, ``stopped`` is why it ended early.
    """

    accepted: dict[str, tuple[Descriptions, str]] = field(default_factory=dict)
    set_aside: list[SetAside] = field(default_factory=list)
    asked: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    stopped: str | None = None

    def unanswered(self) -> list[SetAside]:
        """What the next run will ask again."""
        return [one for one in self.set_aside if not one.final]

    def reasons(self) -> Counter[str]:
        """How often which reason set a candidate aside; numbers and names are left out, so that equal ones meet."""
        return Counter(re.sub(r"\d+", "...", alike(one.reason)) for one in self.set_aside)


def alike(reason: str) -> str:
    """A reason without names and what servers call their requests, so that equal ones meet."""
    return re.sub(r"'[^'{]*'|\b(?=[\w-]*\d)[\w-]{6,}\b", "...", reason)


def relabel(
    candidates: Sequence[Candidate],
    endpoint: Endpoint,
    stop: threading.Event,
    prompt: Prompt,
    judge: Judge,
    journal: Journal,
    options: RelabelOptions | None = None,
    *,
    advance: Callable[[], None] = lambda: None,
    interrupted: Callable[[], None] = lambda: None,
) -> Outcome:
    """Ask for every candidate that the journal does not answer yet; each reply is in the journal before it counts.

    A reply that is not acceptable is asked again, with the reason, until ``attempts`` replies are there; then the
    candidate is set aside. So is one whose image cannot be opened, without a request. ``advance`` is called after each
    candidate.

    Candidates for which a request was refused before are asked last. The run ends (``Outcome.stopped``) after so many
    failures in a row as there are workers and five more; where nothing was ever answered, five are enough. A refusal of
    a candidate that was refused before does not count. It ends as well where the first twenty candidates that it asks
    for are set aside for their replies, and none is accepted, from before or now.

    After the first KeyboardInterrupt ``interrupted`` is called, requests under way are waited for, and it is raised
    again.

    Raises EndpointError where no request can succeed, OSError where the journal cannot be written.
    """
    run = _Run(candidates, endpoint, stop, prompt, judge, journal, options or RelabelOptions(), advance)
    # Not Thread.join: where it is interrupted, Python 3.11 takes the thread for finished.
    ended: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        try:
            run.work()
        finally:
            ended.put(None)

    running = 0
    try:
        for _ in range(run.options.workers):
            threading.Thread(target=work, daemon=True).start()
            running += 1
        while running:
            ended.get()
            running -= 1
    except KeyboardInterrupt:
        stop.set()
        interrupted()
        while running:
            ended.get()
            running -= 1
        raise
    if run.error is not None:
        raise run.error
    run.end()
    return run.outcome


class _Run:
    """What the threads of one run share."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        endpoint: Endpoint,
        stop: threading.Event,
        prompt: Prompt,
        judge: Judge,
        journal: Journal,
        options: RelabelOptions,
        advance: Callable[[], None],
    ) -> None:
        self.options = options
        self.outcome = Outcome()
        self.error: BaseException | None = None
        self._refused = set(journal.refused)
        self._waiting = iter(sorted(candidates, key=lambda candidate: candidate.id in self._refused))
        self._endpoint, self._stop, self._prompt = endpoint, stop, prompt
        self._judge, self._journal, self._advance = judge, journal, advance
        self._lock = threading.Lock()
        self._failures, self._failed = 0, ""
        self._unusable = 0

    def work(self) -> None:
        """Take one candidate after the other until there are none, or the run stops."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    candidate = next(self._waiting, None)
                if candidate is None:
                    return
                self._one(candidate)
                with self._lock:
                    self._advance()
        except StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 - the thread that started us raises it
            with self._lock:
                self.error = self.error or error
            self._stop.set()

    def end(self) -> None:
        """Where there were too few candidates to stop at: an endpoint that refused five, and answered nothing."""
        if self._failures >= _FAILURES_IN_A_ROW and not (self.outcome.asked or self._journal.replies):
            self.outcome.stopped = self.outcome.stopped or self._failed

    def _one(self, candidate: Candidate) -> None:
        replies = list(self._journal.replies.get(candidate.id, ()))
        before = len(replies)
        found, reason, last = judge_replies(self._judge, replies)
        image = ""
        try:
            while found is None and len(replies) < self.options.attempts:
                image = image or data_url(Path(candidate.image), self.options.max_side)
                last = self._ask(candidate, image, None if last is None else (last.text, reason))
                replies.append(last)
                found, reason, _ = judge_replies(self._judge, [last])
        except ImageError as error:
            self._set_aside(candidate, str(error), replies, final=not isinstance(error, ImageNotFoundError))
        except RefusedError as error:
            self._journal.refuse(candidate.id, str(error))
            self._fail(candidate, f"refused: {error}", replies, counts=candidate.id not in self._refused)
        except UnansweredError as error:
            self._fail(candidate, f"not answered: {error}", replies, counts=True)
        else:
            if found is None or last is None:
                self._set_aside(candidate, reason, replies, final=True)
                if len(replies) > before:
                    self._count_unusable(reason)
            else:
                with self._lock:
                    self.outcome.accepted[candidate.id] = (found, last.image_sha256)

    def _ask(self, candidate: Candidate, image: str, rejected: tuple[str, str] | None) -> Reply:
        seen = file_sha256(Path(candidate.image))
        answer: Answer = self._endpoint.ask(self._prompt.messages(candidate.source_text, image, rejected))
        tokens = {"tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}
        reply = Reply(candidate.id, answer.text, answer.finish, seen, seconds=answer.seconds, **tokens)
        self._journal.append(reply)
        with self._lock:
            self._failures = 0
            self.outcome.asked += 1
            self.outcome.tokens_in += answer.tokens_in
            self.outcome.tokens_out += answer.tokens_out
        return reply

    def _fail(self, candidate: Candidate, reason: str, replies: Sequence[Reply], *, counts: bool) -> None:
        """One that fails is set aside; when all do, the reason is not the candidate."""
        self._set_aside(candidate, reason, replies, final=False)
        with self._lock:
            self._failures += counts
            self._failed = reason
            if self._failures >= _FAILURES_IN_A_ROW + self.options.workers:
                self.outcome.stopped = self.outcome.stopped or reason
                self._stop.set()

    def _count_unusable(self, reason: str) -> None:
        with self._lock:
            self._unusable += 1
            if self._unusable >= _ALL_UNUSABLE and not self.outcome.accepted:
                said = f"none of the first {_ALL_UNUSABLE} images got an acceptable reply: {reason}"
                self.outcome.stopped = self.outcome.stopped or said
                self._stop.set()

    def _set_aside(self, candidate: Candidate, reason: str, replies: Sequence[Reply], *, final: bool) -> None:
        last = replies[-1].text if replies else ""
        with self._lock:
            self.outcome.set_aside.append(SetAside(candidate, reason, len(replies), last, final))


def records(table: Path, candidates: Iterable[Candidate], outcome: Outcome) -> list[Record]:
    """The accepted candidates as records of ``table``, in their order; images below its folder get relative paths."""
    folder = _folder(table)
    made = []
    for candidate in candidates:
        if candidate.id in outcome.accepted:
            found, image_sha256 = outcome.accepted[candidate.id]
            made.append(
                Record(
                    id=candidate.id,
                    image=_below(folder, candidate.image),
                    perceptual=found.perceptual,
                    semantic=found.semantic,
                    source=candidate.source,
                    source_text=candidate.source_text,
                    image_sha256=image_sha256,
                    text_sha256=candidate.text_sha256,
                    image_type=candidate.image_type,
                )
            )
    return made


def require_utf8(table: Path, candidates: Iterable[Candidate]) -> None:
    """Raise TrainingError now, before anything is paid for, where ``table`` could not hold a candidate."""
    folder = _folder(table)
    for candidate in candidates:
        image = _below(folder, candidate.image)
        try:
            image.encode()
        except UnicodeEncodeError as error:
            raise TrainingError(
                f"{image} is not named in UTF-8, as {table} needs it. Rename it, or write the table to a folder above."
            ) from error
        for name, text in asdict(candidate).items():
            if name != "image" and str(text).encode("utf-8", "replace").decode() != str(text):
                raise TrainingError(
                    f"the {name.replace('_', ' ')} of candidate {candidate.id!r} holds half a character, as no table "
                    "can. Make the candidates again with declip i2t filter."
                )


def _folder(table: Path) -> Path:
    """Where a link stands, for the table will take its place."""
    return table.parent.resolve()


def _below(folder: Path, image: str) -> str:
    path = Path(image)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else image
