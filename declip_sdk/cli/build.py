"""``declip build``: a TensorRT plan for this machine's GPU, into an engine file."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click

from declip_runtime import tensorrt_library
from declip_runtime.backends.base import Precision, signature_of
from declip_runtime.backends.tensorrt import TensorRTBackend, gpu_index
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.engine_writer import add_plans, require_room_for_plans
from declip_runtime.errors import UsageError
from declip_runtime.manifest import Plan
from declip_runtime.plan_builder import BuildOptions, build_plan
from declip_runtime.plan_check import check
from declip_runtime.plans import GRAPHS, Site, best_plan, parse_profile
from declip_runtime.signature import Range
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
@click.option("--component", metavar="NAME", help="Only this model of a generator; default: all of them.")
@click.option("--batch", metavar="MIN,OPT,MAX", help="Batch sizes that it takes; default: 1,64,64, or the generator's.")
@click.option(
    "--range", "ranges", multiple=True, metavar="NAME=MIN,OPT,MAX", help="Sizes of a generator, as height=64,64,96."
)
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
    component: str | None,
    batch: str | None,
    ranges: tuple[str, ...],
    device: str,
    workspace: int | None,
    level: int,
    version_compatible: bool,
    without_lean: bool,
    hardware_compatible: bool,
    detailed: bool,
) -> None:
    """Build a TensorRT plan of ENGINE for this machine's GPU and put it into the engine file.

    Of a generator a plan of each of its models is built. An engine keeps plans for any number of GPUs and TensorRT
    versions, and its scores and id stay the same. Without a plan that fits, the first Scorer on a GPU builds one by
    itself and keeps it in the cache: this command is for shipping it. Without ENGINE: the bundled one, with -o. Takes
    from seconds to many minutes; Ctrl-C leaves no trace.

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
        None if batch is None else parse_profile(batch),
        _ranges(ranges),
        workspace=workspace,
        level=level,
        version_compatible=version_compatible,
        without_lean=without_lean,
        hardware_compatible=hardware_compatible,
        detailed=detailed,
    )
    known = {name for signature in file.manifest.signatures.values() for name in signature.free}
    if unknown := set(options.sizes) - known:
        raise UsageError(
            f"--range {', '.join(sorted(unknown))}: this engine's free sizes are {', '.join(sorted(known))}."
        )
    site = tensorrt_library.site(gpu_index(device))
    built: list[tuple[Plan, bytes]] = []
    for name in file.manifest.signatures if component is None else (component,):
        own = replace(options, sizes={n: r for n, r in options.sizes.items() if n in signature_of(file, name).free})
        with share_bar(f"building a plan of {name or file.manifest.name} for {site}") as progress:
            built.append(
                build_plan(
                    file,
                    own,
                    component=name,
                    precision=precision,
                    device=site.device,
                    cache=Cache(),
                    progress=progress,
                )
            )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".declip-build-") as folder:
        draft = add_plans(file.path, built, Path(folder) / "draft.engine")
        compared = [_compared(draft, plan, site) for plan, _ in built]
        draft.path.replace(target)
    for (plan, content), result in zip(built, compared, strict=True):
        size = f"{len(content) / 1e6:,.1f} MB"
        click.echo(f"{visible(str(target))}: {plan.entry}, {size}, batches {plan.profile}; {result}")


def _ranges(texts: tuple[str, ...]) -> dict[str, Range]:
    ranges = {}
    for text in texts:
        name, equals, sizes = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is no range of sizes. Write it as height=64,64,96.")
        ranges[name.strip()] = parse_profile(sizes)
    return ranges


def _compared(draft: EngineFile, plan: Plan, site: Site) -> str:
    """Say whether the new plan computes what the engine does on the CPU. Raises BackendExecutionError where not."""
    if best_plan(draft, plan.precision, site, plan.component) != plan:
        return "not compared with a CPU, because another plan of the engine is used here"
    device = f"cuda:{site.device}"
    with closing(TensorRTBackend(draft, component=plan.component, device=device, precision=plan.precision)) as backend:
        missing = check(draft, backend.precision, backend.compute, f"the plan {plan.entry}", plan.component)
    return "compared with the engine on the CPU" if missing is None else f"not compared with a CPU: {missing}"
