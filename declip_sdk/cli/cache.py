"""``declip cache``: the compiled models kept on disk."""

from __future__ import annotations

import time
from pathlib import Path

import click

from declip_runtime.cache import Cache

from .text import count, visible

_folder = click.option(
    "--folder", type=click.Path(path_type=Path), help="Another cache folder, as given to Scorer(cache_dir=)."
)


@click.group("cache")
def command() -> None:
    """Show or clear the cache of compiled models, which makes the second start of an engine fast.

    The environment variable DECLIP_CACHE_LIMIT says how large it may grow: bytes, or as in 8GB; 0 keeps nothing.
    """


@command.command("path")
def path() -> None:
    """Print the folder of the cache."""
    click.echo(str(Cache().location))


@command.command("list")
@_folder
def list_(folder: Path | None) -> None:
    """List the compiled models, last used first."""
    cache = Cache(folder)
    entries = cache.list()
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        click.echo(f"{entry.size / 1e6:10.1f} MB  {used}  {visible(entry.name)}")
    total = sum(entry.size for entry in entries)
    click.echo(f"{total / 1e6:10.1f} MB of at most {cache.limit / 1e6:.0f} MB in {count(len(entries), 'model')}")


@command.command("clear")
@_folder
def clear(folder: Path | None) -> None:
    """Remove all compiled models; the next start of each engine compiles it again."""
    cache = Cache(folder)
    held = cache.list()
    freed = cache.clear()  # also where none is held: it removes what killed processes left behind
    if held:
        click.echo(f"{freed / 1e6:.1f} MB freed")
    else:
        click.echo(f"there are no compiled models in {visible(str(cache.location))}")
