"""What is going on, on standard error, for people only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.status import Status
from rich.text import Text

from declip_runtime.announce import Announcer

from .text import visible

_SETTLED = 1.0  # seconds of work before which no rate is worth showing


def _rate_of(task: Task) -> float | None:
    """Images a second since the bar began; None as long as nothing sensible is known.

    Rich's own speed is taken between updates. Answers come a whole batch at once, so it would be thousands a second.
    """
    seconds = task.finished_time if task.finished else task.elapsed
    return task.completed / seconds if task.completed and seconds is not None and seconds >= _SETTLED else None


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        rate = _rate_of(task)
        return Text("" if rate is None else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s", style="cyan")


class _Remaining(ProgressColumn):
    """Hours, minutes and seconds until all images are done at that rate."""

    def render(self, task: Task) -> Text:
        rate, images = _rate_of(task), task.remaining
        left = "" if rate is None or images is None else str(timedelta(seconds=round(images / rate)))
        return Text(left, style="cyan")


@contextmanager
def loading() -> Iterator[None]:
    """Show that an engine is being loaded; a large one is compiled for a minute before it is in the cache."""
    if not sys.stderr.isatty():
        yield
        return
    with working("loading the engine"):
        yield


def working(on: str) -> Status:
    """The sign, on standard error, that something is going on."""
    console = Console(stderr=True)
    return console.status(on, spinner="line" if console.options.ascii_only else "dots")


@contextmanager
def progress_bar(total: int | None, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show done, rate and remaining time (of ``total`` images; None is unknown) while the block runs, then vanish.

    Yields the function to call after each image.

    ``shown`` False, or a standard error that is no terminal, shows nothing.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), _Rate(), _Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


@contextmanager
def share_bar(what: str) -> Iterator[Callable[[str, float], None]]:
    """Show how much of one long piece of work is done: a bar in a terminal, else a line now and then.

    Yields the function to call, from any thread, with what is being done and the share 0..1.
    """
    if not sys.stderr.isatty():
        with Announcer(what) as tell:
            yield tell
        return
    columns = (
        TextColumn(visible(what)),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[phase]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0, phase="")
        yield lambda phase, share: progress.update(task, completed=share, phase=visible(phase))
