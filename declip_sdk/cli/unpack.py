"""``declip unpack``: an engine as a folder of files."""

from __future__ import annotations

from pathlib import Path

import click

from declip_runtime.engine_file import EngineFile

from .options import engine_argument
from .output import writing
from .text import visible


@click.command("unpack")
@engine_argument(required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to fill; default is the engine's name.")
def command(engine: str, output: Path | None) -> None:
    """Write ENGINE's graphs as ONNX files that trtexec, Triton and Netron read, its plans, and its manifest.

    The graphs give raw scores: the calibration stands in manifest.json and is not part of them.
    """
    file = EngineFile.open(engine)
    folder = output or Path(file.path.stem)
    with writing(folder):
        paths = file.unpack(folder)
    for path in paths:
        click.echo(visible(str(path)))
