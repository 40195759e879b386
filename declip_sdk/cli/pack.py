"""``declip pack``: a folder of files as an engine."""

from __future__ import annotations

from pathlib import Path

import click

from declip_runtime.engine_writer import pack

from .output import require_place
from .text import visible


@click.command("pack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The engine file to write.")
def command(folder: Path, output: Path) -> None:
    """Make an engine of FOLDER: manifest.json, fp32.onnx, other graphs and plans, and the weights.bin they refer to.

    Such a folder is what `declip unpack` writes; it may have been edited. Hashes are made anew.
    """
    require_place(output, [str(path) for path in folder.rglob("*")])
    engine = pack(folder, output)
    click.echo(f"{visible(str(engine.path))} ({engine.path.stat().st_size / 1e6:.1f} MB), id {engine.id}")
