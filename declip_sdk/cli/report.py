"""What ``declip score`` says on standard error, and with which exit code it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from declip_runtime.scorer import Scorer
from declip_runtime.scores import Score

from .paths import Found
from .text import count, visible

SOME_FAILED, INTERRUPTED = 1, 130


class Report:
    """Counts images; ``total`` is None where nobody knows it beforehand."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.seconds = 0.0
        self.interrupted = False
        self._done = 0
        self._failed = 0
        self._incomplete = False

    def found(self, found: Found) -> None:
        """Take the total, and tell what was not found out or not taken."""
        self.total = len(found.images)
        self._incomplete = bool(found.unreadable_folders)
        for folder in found.unreadable_folders:
            _say(f"cannot read the folder {folder}")
        if found.unreadable_formats:
            kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in found.unreadable_formats.most_common())
            _say(f"passed over photos in formats that cannot be decoded here: {kinds}")

    def add(self, score: Score) -> None:
        """Count one image."""
        self._done += 1
        self._failed += score.error is not None

    @property
    def exit_code(self) -> int:
        """0 all scored, 1 some failed, 130 interrupted."""
        if self.interrupted:
            return INTERRUPTED
        return SOME_FAILED if self._failed or self._incomplete else 0

    def finish(self, scorer: Scorer, output: Path | None) -> None:
        """The last line: for people always, otherwise only when something went wrong."""
        wrong = self._what_went_wrong()
        if not sys.stderr.isatty():
            if wrong:
                _say(wrong)
            return
        how = f"{scorer.manifest.name} on {scorer.backend} {scorer.device} {scorer.precision}"
        parts = [f"{count(self._done, 'image')} in {self.seconds:.1f} s, {self._done / self.seconds:,.0f}/s", how]
        parts += [f"written to {visible(str(output))}"] if output else []
        console = Console(stderr=True)
        if wrong:
            console.print(Text(wrong, style="red"))
        console.print(Text(" · ".join(parts), style="dim"))

    def _what_went_wrong(self) -> str:
        if self.interrupted:
            of = "" if self.total is None else f" of {self.total:,}"
            return f"interrupted after {self._done:,}{of} images; what was done is written"
        return f"{self._failed:,} of {count(self._done, 'image')} failed" if self._failed else ""


def _say(sentence: str) -> None:
    click.echo(f"declip: {visible(sentence)}", err=True)
