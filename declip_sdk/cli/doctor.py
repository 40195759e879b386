"""``declip doctor``: what this machine has, what runs on it, and what to install to be faster."""

from __future__ import annotations

import json

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from declip_runtime.doctor import Diagnosis, diagnose
from declip_runtime.engine_file import EngineFile, bundled_engine

from .facts import choice, grid, states
from .options import engine_argument
from .output import standard_output
from .screen import draw
from .text import visible


@click.command("doctor")
@engine_argument(required=False)
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
def command(engine: str | None, format_: str) -> None:
    """Show CPU, GPUs and libraries of this machine, what would run ENGINE, and what would make it faster.

    Without ENGINE: the bundled one. Nothing is compiled, written or sent. What it prints belongs into a bug report.
    """
    diagnosis = diagnose(EngineFile.open(engine or bundled_engine()))
    if format_ == "json":
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        draw(standard_output(), lambda console: _page(diagnosis, console))


def _page(diagnosis: Diagnosis, console: Console) -> RenderableType:
    gpus = {
        f"cuda:{gpu.index}": f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 2**30:.0f} GiB"
        for gpu in diagnosis.gpus
    }
    advice = [Text(f"  {visible(line)}", style="yellow") for line in diagnosis.advice]
    return Group(
        Text("this machine", style="bold"),
        grid(diagnosis.machine),
        Text("\nGPUs", style="bold"),
        grid(gpus or {"none": "that CUDA can reach"}),
        Text("\nlibraries", style="bold"),
        grid(diagnosis.libraries),
        Text("\nbackends here", style="bold"),
        states(diagnosis.backends),
        Text.assemble("\nchosen here: ", choice(diagnosis.chosen, console)),
        Text("\nto be faster", style="bold"),
        *(advice or [Text("  nothing to do", style="green")]),
    )
