"""``declip info``: what an engine is, what it scores, and what would run it here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from declip_runtime import backends
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import BackendError
from declip_runtime.manifest import ScoreSpec

from .options import engine_argument
from .output import standard_output
from .screen import draw, separator
from .table import NOT_VALIDATED
from .text import visible

CARD = "model_card"  # key in an engine's provenance: Markdown


@click.command("info")
@engine_argument(required=False)
@click.option("--license", "license_", is_flag=True, help="Print the full licence of the weights.")
@click.option("--card", is_flag=True, help="Print the model card: data, numbers, limits.")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
def command(engine: str | None, license_: bool, card: bool, format_: str) -> None:
    """Show what ENGINE scores, how each score was validated, and what runs it on this machine.

    Without ENGINE: the bundled one. The weights are not read: `declip verify` checks them.
    """
    file = EngineFile.open(engine or bundled_engine())
    if license_:
        licence = file.manifest.license
        click.echo(f"{licence.name}\n\n{licence.text}" if licence else "the engine states no licence")
    elif card:
        click.echo(file.manifest.provenance.get(CARD, "the engine has no model card"))
    elif format_ == "json":
        click.echo(json.dumps(_as_json(file), indent=2))
    else:
        chosen = _chosen(file)
        draw(standard_output(), lambda console: _page(file, chosen, console))


def _chosen(file: EngineFile) -> dict[str, str]:
    """What ``Scorer`` would take; the graph is not compiled and the weights are not read."""
    try:
        return asdict(backends.resolve(file))
    except BackendError as error:
        return {"error": str(error)}


def _usable() -> dict[str, str | None]:
    """Backends with None where users can choose them, else the reason."""
    return {**backends.available(), "fake": "made for tests: its scores are made up"}


def _as_json(file: EngineFile) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "bytes": file.path.stat().st_size,
        "manifest": file.manifest.to_dict(),
        "backends": _usable(),
        "chosen": _chosen(file),
    }


def _page(file: EngineFile, chosen: Mapping[str, str], console: Console) -> RenderableType:
    scores = _grid()
    for spec in file.manifest.scores:
        scores.add_row(Text(f"  {spec.name}"), Text(_meaning(spec)), _about(spec))
    available = _grid()
    for name, reason in _usable().items():
        state = Text("ready", style="green") if reason is None else Text(visible(reason), style="dim")
        available.add_row(Text(f"  {name}"), state)
    failed = chosen.get("error")
    facts = separator(console).join(chosen.values())
    choice = (visible(" ".join(failed.split())), "red") if failed else (facts, "bold")
    return Group(
        Text(visible(file.manifest.name), style="bold"),
        _facts(file),
        Text("\nscores", style="bold"),
        scores,
        Text("\nbackends here", style="bold"),
        available,
        Text.assemble("\nchosen here: ", choice),
    )


def _grid() -> Table:
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True)
    return grid


def _facts(file: EngineFile) -> Table:
    manifest = file.manifest
    licence = f"{manifest.license.name} (full text: --license)" if manifest.license else "not stated"
    facts = {
        "id": file.id,
        "file": f"{file.path} ({file.path.stat().st_size / 1e6:.1f} MB)",
        "input": f"{manifest.preprocess.size} x {manifest.preprocess.size}, {manifest.preprocess.interpolation}",
        "graphs": f"{', '.join(manifest.graphs)}; weights stored as {manifest.weights_dtype}",
        "embedding": f"{manifest.embedding_dim} values" + (", perceptual and semantic" * manifest.has_semantic),
        "plans": ", ".join(f"{p.entry} ({p.device_name})" for p in manifest.plans),
        "created": " by ".join(filter(None, (manifest.created, manifest.producer))),
        "licence": licence,
        "card": "data, numbers and limits: --card" if CARD in manifest.provenance else "",
    }
    grid = _grid()
    for name, value in facts.items():
        if value:
            grid.add_row(Text(f"  {name}", style="dim"), Text(visible(value), overflow="fold"))
    return grid


def _meaning(spec: ScoreSpec) -> str:
    return "higher is better" if spec.kind == "quality" else "higher is more"


def _about(spec: ScoreSpec) -> Text:
    """Validation, then description and prompts, a line each."""
    v = spec.validated
    if v is None:
        lines = [(NOT_VALIDATED, "yellow")]
    else:
        note = f" ({v.note})" if v.note else ""
        lines = [(f"SRCC {v.srcc:.3f} on {v.dataset}, {v.n:,} images{note}", "green")]
    lines += [(spec.description, "")] if spec.description else []
    lines += [(f"{positive} / {negative}", "dim") for positive, negative in spec.pairs]
    return Text("\n").join(Text(visible(line), style=style) for line, style in lines)
