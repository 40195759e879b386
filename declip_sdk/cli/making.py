"""What the verbs that make engines say: what is being done, how long it took, and what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from declip_runtime.engine_file import EngineFile

from .text import visible


@contextmanager
def told_stages() -> Iterator[Callable[[str], None]]:
    """Say on standard error what is being done: a line a stage with its seconds, and a spinner in a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    began = last = time.monotonic()
    doing = ""

    def done(now: float) -> None:
        if doing:
            console.print(f"  {now - last:6.1f} s  {doing}", highlight=False, markup=False)

    with console.status("starting") as status:

        def stage(text: str) -> None:
            nonlocal doing, last
            now = time.monotonic()
            done(now)
            doing, last = text, now
            status.update(f"{text} ...")

        yield stage
        done(time.monotonic())
    console.print(f"  {time.monotonic() - began:6.1f} s  in all", highlight=False)


def tell_engine(engine: EngineFile) -> None:
    """The engine's place, size and id on standard output, and what making it has taken of memory."""
    size, peak = engine.path.stat().st_size / 1e6, _peak_memory()
    memory = "" if peak is None else f", peak memory {peak / 1e6:,.0f} MB"
    click.echo(f"{visible(str(engine.path))} ({size:,.1f} MB{memory}), id {engine.id}")


def _peak_memory() -> int | None:
    """Largest resident size of this process in bytes; None where the system does not say (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
