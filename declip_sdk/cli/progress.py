"""What is going on, on standard error, for people only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from declip_runtime.announce import Announcer

from .text import visible


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="cyan")


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
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
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
