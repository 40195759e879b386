"""``declip verify``: check every hash in an engine file."""

from __future__ import annotations

import click

from declip_runtime.engine_file import EngineFile, bundled_engine

from .options import engine_argument
from .text import visible


@click.command("verify")
@engine_argument(required=False)
def command(engine: str | None) -> None:
    """Check every hash in ENGINE, weights included (default: the bundled engine).

    This proves that nothing was damaged, not who made the file.
    """
    file = EngineFile.open(engine or bundled_engine())
    file.verify()
    click.echo(f"{visible(str(file.path))}: {len(file.manifest.entries)} entries intact, id {file.id}")
