"""``declip info``: what an engine is, what it scores, and what would run it here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from declip_runtime import tensorrt_library
from declip_runtime.backends.tensorrt import TensorRTBackend
from declip_runtime.doctor import backend_states, chosen_here
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import BackendUnavailableError
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.manifest import Manifest, Plan
from declip_runtime.plans import Site, best_plan, mismatch
from declip_runtime.scorer_manifest import ScorerManifest, ScoreSpec

from .facts import choice, empty_grid, grid, states
from .options import engine_argument
from .output import standard_output
from .screen import draw
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

    Of a generator: its models, and the sizes of pictures that it makes.

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
        chosen = chosen_here(file)
        draw(standard_output(), lambda console: _page(file, chosen, console))


def _as_json(file: EngineFile) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "bytes": file.path.stat().st_size,
        "manifest": file.manifest.to_dict(),
        "backends": backend_states(),
        "chosen": chosen_here(file),
        "plans": _plans(file),
    }


def _page(file: EngineFile, chosen: Mapping[str, str], console: Console) -> RenderableType:
    title, contents = _contents(file.manifest)
    plans = (Text("\nTensorRT plans", style="bold"), states(_plans(file))) if file.manifest.plans else ()
    return Group(
        Text(visible(file.manifest.name), style="bold"),
        grid(_facts(file)),
        Text(f"\n{title}", style="bold"),
        contents,
        *plans,
        Text("\nbackends here", style="bold"),
        states(backend_states()),
        Text.assemble("\nchosen here: ", choice(chosen, console)),
    )


def _contents(manifest: Manifest) -> tuple[str, Table]:
    """What the engine holds, and its heading: a scorer's scores, a generator's models."""
    table = empty_grid()
    if isinstance(manifest, ScorerManifest):
        for spec in manifest.scores:
            table.add_row(Text(f"  {spec.name}"), Text(_meaning(spec)), _about(spec))
        return "scores", table
    for component, signature in manifest.signatures.items():
        sizes = ", ".join(f"{name} {low}..{high}" for name, (low, _, high) in signature.free.items())
        table.add_row(Text(f"  {component}"), Text(", ".join(manifest.kinds(component))), Text(sizes))
    return "models", table


def _plans(file: EngineFile) -> dict[str, str | None]:
    """Every plan, described, with None where it would run here, else why not; the one that would be taken says so."""
    try:
        site = tensorrt_library.site(0)
    except BackendUnavailableError as error:
        return {_described(plan): str(error) for plan in file.manifest.plans}
    taken = [_taken(file, component, site) for component in file.manifest.signatures]
    fix = "" if site.lean else ". One that fits is built at first use, or by declip build"

    def refusal(plan: Plan) -> str | None:
        reason = mismatch(file, plan, site)
        return None if reason is None else reason + fix

    return {_described(plan) + ", used here" * (plan in taken): refusal(plan) for plan in file.manifest.plans}


def _taken(file: EngineFile, component: str, site: Site) -> Plan | None:
    try:
        return best_plan(file, TensorRTBackend.resolve(file, component=component)[1], site, component)
    except BackendUnavailableError:  # the lean runtime, and none that fits
        return None


def _described(plan: Plan) -> str:
    return f"{plan.entry}, {plan.precision}, {plan.ranges}"


def _facts(file: EngineFile) -> dict[str, str]:
    manifest = file.manifest
    licence = f"{manifest.license.name} (full text: --license)" if manifest.license else "not stated"
    return {
        "id": file.id,
        "file": f"{file.path} ({file.path.stat().st_size / 1e6:.1f} MB)",
        **(_scorer_facts(manifest) if isinstance(manifest, ScorerManifest) else _generator_facts(file.generator)),
        "created": " by ".join(filter(None, (manifest.created, manifest.producer))),
        "licence": licence,
        "card": "data, numbers and limits: --card" if CARD in manifest.provenance else "",
    }


def _scorer_facts(manifest: ScorerManifest) -> dict[str, str]:
    return {
        "input": f"{manifest.preprocess.size} x {manifest.preprocess.size}, {manifest.preprocess.interpolation}",
        "graphs": f"{', '.join(manifest.graphs)}; weights stored as {manifest.weights_dtype}",
        "embedding": f"{manifest.embedding_dim} values" + (", perceptual and semantic" * manifest.has_semantic),
    }


def _generator_facts(manifest: GeneratorManifest) -> dict[str, str]:
    family = {"sd": "Stable Diffusion", "sdxl": "Stable Diffusion XL"}[manifest.family]
    made = ", ".join(f"{manifest.provenance[key]}" for key in ("base", "adapter") if key in manifest.provenance)
    return {
        "generates": f"pictures of {manifest.width} x {manifest.height} pixels, {family}" + f" ({made})" * bool(made),
        "defaults": f"{manifest.steps} steps, guidance {manifest.guidance:g}, {manifest.scheduler['_class_name']}",
        "conditions": f"embeddings of {manifest.embedding_dim} values, {len(manifest.layers)} cross-attention layers",
        "weights": f"stored as {manifest.weights_dtype}",
    }


def _meaning(spec: ScoreSpec) -> str:
    return "higher is better" if spec.kind == "quality" else "higher is more"


def _about(spec: ScoreSpec) -> Text:
    """Validation, then description and prompts, a line each."""
    v = spec.validated
    if v is None:
        lines = [(NOT_VALIDATED, "yellow")]
    else:
        note = f" ({v.note})" if v.note else ""
        lines = [(f"SRCC {v.srcc:.4g} on {v.dataset}, {v.n:,} images{note}", "green")]
    lines += [(spec.description, "")] if spec.description else []
    lines += [(f"{positive} / {negative}", "dim") for positive, negative in spec.pairs]
    return Text("\n").join(Text(visible(line), style=style) for line, style in lines)
