"""``declip build``: a TensorRT plan for this machine's GPU, into an engine file."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import click

from declip_runtime import tensorrt_library
from declip_runtime.backends.base import Precision
from declip_runtime.backends.tensorrt import TensorRTBackend, gpu_index
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.engine_writer import add_plan, require_room_for_plans
from declip_runtime.manifest import Plan
from declip_runtime.plan_builder import BuildOptions, build_plan
from declip_runtime.plan_check import check
from declip_runtime.plans import GRAPHS, Site, best_plan, parse_profile
from declip_runtime.sizes import parse_size

from .options import engine_argument
from .progress import share_bar
from .text import visible


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    size = None if value is None else parse_size(value)
    if value is not None and size is None:
        raise click.BadParameter(f"{value!r} is no size. Give bytes or a number with a unit, as 2GB or 500MiB.")
    return size


@click.command("build")
@engine_argument(required=False)
@click.option(
    "-o", "--output", type=click.Path(), help="Write a copy of the engine there; default: into ENGINE itself."
)
@click.option("--precision", type=click.Choice(list(GRAPHS)), default="fp16", show_default=True)
@click.option("--batch", default="1,64,64", show_default=True, metavar="MIN,OPT,MAX", help="Batch sizes that it takes.")
@click.option("--device", default="cuda:0", show_default=True, metavar="NAME", help="GPU to build on and for.")
@click.option("--workspace", callback=_size, metavar="SIZE", help="Most memory to try tactics with; default: all.")
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="0 builds fast, 5 runs fast.")
@click.option("--version-compatible", is_flag=True, help="Later releases of this TensorRT run it, the lean one too.")
@click.option("--without-lean", is_flag=True, help="Leave out the runtime that such a plan brings along.")
@click.option("--hardware-compatible", is_flag=True, help="Every GPU from Ampere on runs it, more slowly.")
@click.option("--detailed", is_flag=True, help="Keep layer names and tactics for profilers.")
def command(
    engine: str | None,
    output: str | None,
    precision: Precision,
    batch: str,
    device: str,
    workspace: int | None,
    level: int,
    version_compatible: bool,
    without_lean: bool,
    hardware_compatible: bool,
    detailed: bool,
) -> None:
    """Build a TensorRT plan of ENGINE for this machine's GPU and put it into the engine file.

    An engine keeps plans for any number of GPUs and TensorRT versions, and its scores and id stay the same. Without a
    plan that fits, the first Scorer on a GPU builds one by itself and keeps it in the cache: this command is for
    shipping it. Without ENGINE: the bundled one, with -o. Takes from seconds to many minutes; Ctrl-C leaves no trace.

    \b
    declip build declip.engine
    declip build declip.engine -o for-orin.engine --batch 1,8,16
    declip build declip.engine --version-compatible --hardware-compatible
    """
    if engine is None and output is None:
        raise click.UsageError("The bundled engine belongs to the package. Name a place for a copy with -o.")
    file = EngineFile.open(engine or bundled_engine())
    target = require_room_for_plans(file, output)
    options = BuildOptions(
        parse_profile(batch), workspace, level, version_compatible, without_lean, hardware_compatible, detailed
    )
    site = tensorrt_library.site(gpu_index(device))
    with share_bar(f"building a plan of {file.manifest.name} for {site}") as progress:
        plan, content = build_plan(
            file, options, precision=precision, device=site.device, cache=Cache(), progress=progress
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".declip-build-") as folder:
        draft = add_plan(file.path, plan, content, Path(folder) / "draft.engine")
        compared = _compared(draft, plan, site)
        draft.path.replace(target)
    size = f"{len(content) / 1e6:,.1f} MB"
    click.echo(f"{visible(str(target))}: {plan.entry}, {size}, batches {plan.profile}; {compared}")


def _compared(draft: EngineFile, plan: Plan, site: Site) -> str:
    """Say whether the new plan computes what the engine does on the CPU. Raises BackendExecutionError where not."""
    if best_plan(draft, plan.precision, site) != plan:
        return "not compared with a CPU, because another plan of the engine is used here"
    with closing(TensorRTBackend(draft, device=f"cuda:{site.device}", precision=plan.precision)) as backend:
        missing = check(draft, backend.precision, backend.run, f"the plan {plan.entry}")
    return "compared with the engine on the CPU" if missing is None else f"not compared with a CPU: {missing}"
