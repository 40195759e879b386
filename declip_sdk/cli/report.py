"""What ``declip score`` says on standard error, and with which exit code it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from declip_runtime.errors import DeclipError
from declip_runtime.scorer import Scorer
from declip_runtime.scores import Score

from . import signals
from .paths import Found
from .say import say
from .screen import separator
from .text import count, visible

SOME_FAILED = 1
_NAMED = 5


class Report:
    """Counts images; ``total`` is None where nobody knows it beforehand, ``left_out`` are scored but not wanted.

    ``stopped`` is what ended the run before its time: Ctrl-C, SIGTERM, or an error that is not one image's.
    """

    def __init__(self, minimums: Sequence[str] = ()) -> None:
        self._minimums = minimums
        self.total: int | None = None
        self.seconds = 0.0
        self.stopped: KeyboardInterrupt | DeclipError | None = None
        self.done = 0
        self.left_out = 0
        self._failed = 0
        self._reasons: list[str] = []
        self._incomplete = False
        self._passed_over = ""

    def found(self, found: Found) -> None:
        """Take the total, and tell what could not be looked into."""
        self.total = len(found.images)
        self._incomplete = bool(found.unreadable_folders)
        for folder in found.unreadable_folders:
            say(f"cannot read the folder {folder}")
        self._passed_over = found.passed_over()

    def add(self, score: Score) -> None:
        """Count one image."""
        self.done += 1
        if score.error is not None:
            self._failed += 1
            self._reasons += [str(score.error)] if self._failed <= _NAMED else []

    @property
    def exit_code(self) -> int:
        """0 all scored, 1 some failed, 130 interrupted, 143 terminated."""
        if isinstance(self.stopped, KeyboardInterrupt):
            return signals.exit_code(self.stopped)
        return SOME_FAILED if self._failed or self._incomplete else 0

    def finish(self, scorer: Scorer, output: Path | None, *, reasons: bool, failures: bool) -> None:
        """The last lines: for people always, otherwise only what went wrong or was passed over.

        ``reasons`` and ``failures`` False where a terminal has just shown them: why images failed, that some did.
        """
        notes = [*self._failures(reasons, failures), *self._what_is_missing()]
        if not sys.stderr.isatty():
            for note in notes:
                say(note)
            return
        console = Console(stderr=True)
        for note in notes:
            console.print(Text(visible(note), style="red"))
        how = f"{scorer.manifest.name} on {scorer.backend} {scorer.device} {scorer.precision}"
        parts = [f"{count(self.done, 'image')} in {self.seconds:.1f} s, {self.done / self.seconds:,.0f}/s", how]
        parts += [f"written to {visible(str(output))}"] if output else []
        console.print(Text(separator(console).join(parts), style="dim"))

    def _failures(self, reasons: bool, failures: bool) -> list[str]:
        named = self._reasons if reasons and self._failed <= _NAMED else []
        if self.stopped is not None:
            how = signals.word(self.stopped) if isinstance(self.stopped, KeyboardInterrupt) else "stopped"
            after = count(self.done, "image") if self.total is None else self._of(self.done, self.total)
            return [*named, f"{how} after {after}; what was done is written"]
        return [*named, f"{self._of(self._failed, self.done)} failed"] if self._failed and failures else []

    def _what_is_missing(self) -> list[str]:
        notes = []
        if self._minimums and self.left_out == self.done - self._failed > 0:
            notes.append(f"no image reaches --min {' --min '.join(self._minimums)}")
        if self._passed_over:
            notes.append(f"passed over: {self._passed_over}")
        return notes

    @staticmethod
    def _of(part: int, whole: int) -> str:
        return f"{part:,} of {count(whole, 'image')}"
