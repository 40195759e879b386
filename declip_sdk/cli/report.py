"""What ``declip score`` says on standard error, and with which exit code it ends."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from declip_runtime.errors import DeclipError
from declip_runtime.scorer import Scorer
from declip_runtime.scores import Score

from . import signals
from .paths import Found
from .say import say
from .text import count, visible

SOME_FAILED = 1


class Report:
    """Counts images; ``total`` is None where nobody knows it beforehand.

    ``stopped`` is what ended the run before its time: Ctrl-C, SIGTERM, or an error that is not one image's.
    """

    def __init__(self) -> None:
        self.total: int | None = None
        self.seconds = 0.0
        self.stopped: KeyboardInterrupt | DeclipError | None = None
        self.done = 0
        self._failed = 0
        self._incomplete = False

    def found(self, found: Found) -> None:
        """Take the total, and tell what was not found out or not taken."""
        self.total = len(found.images)
        self._incomplete = bool(found.unreadable_folders)
        for folder in found.unreadable_folders:
            say(f"cannot read the folder {folder}")
        if found.unreadable_formats:
            kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in found.unreadable_formats.most_common())
            say(f"passed over photos in formats that cannot be decoded here: {kinds}")

    def add(self, score: Score) -> None:
        """Count one image."""
        self.done += 1
        self._failed += score.error is not None

    @property
    def exit_code(self) -> int:
        """0 all scored, 1 some failed, 130 interrupted, 143 terminated."""
        if isinstance(self.stopped, KeyboardInterrupt):
            return signals.exit_code(self.stopped)
        return SOME_FAILED if self._failed or self._incomplete else 0

    def finish(self, scorer: Scorer, output: Path | None) -> None:
        """The last line: for people always, otherwise only when something went wrong."""
        wrong = self._what_went_wrong()
        if not sys.stderr.isatty():
            if wrong:
                say(wrong)
            return
        how = f"{scorer.manifest.name} on {scorer.backend} {scorer.device} {scorer.precision}"
        parts = [f"{count(self.done, 'image')} in {self.seconds:.1f} s, {self.done / self.seconds:,.0f}/s", how]
        parts += [f"written to {visible(str(output))}"] if output else []
        console = Console(stderr=True)
        if wrong:
            console.print(Text(wrong, style="red"))
        console.print(Text(" · ".join(parts), style="dim"))

    def _what_went_wrong(self) -> str:
        if self.stopped is not None:
            how = signals.word(self.stopped) if isinstance(self.stopped, KeyboardInterrupt) else "stopped"
            of = "" if self.total is None else f" of {self.total:,}"
            return f"{how} after {self.done:,}{of} images; what was done is written"
        return f"{self._failed:,} of {count(self.done, 'image')} failed" if self._failed else ""
