"""How far work of several stages is, on standard error: bars in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

_LINE_EVERY = 30.0  # seconds, where standard error is no terminal


@contextmanager
def stage_progress(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Done, rate and remaining time of each stage on standard error: bars in a terminal, else a line now and then."""
    if not shown:
        yield lambda stage, done, total: None
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
            tasks: dict[str, Any] = {}

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total, completed=done, rate="")
                speed = bars.tasks[tasks[stage]].speed
                bars.update(tasks[stage], completed=done, rate="" if speed is None else f"{speed:,.1f}/s")

            yield update


class _Lines:
    """Progress where no bar can be drawn."""

    def __init__(self) -> None:
        self._stage, self._began, self._first, self._last = "", 0.0, 0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first, self._last = stage, now, done, now
            return
        if now - self._last < _LINE_EVERY and done < total:
            return
        self._last = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = f", {(total - done) / rate / 60:,.1f} min left" if 0 < done < total and rate else ""
        click.echo(f"  {stage} {done:,}/{total:,}, {rate:,.1f}/s{left}", err=True)
