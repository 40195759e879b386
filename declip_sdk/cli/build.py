"""``declip build``: a TensorRT plan for this machine's GPU, into an engine file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import click

from declip_runtime import tensorrt_library
from declip_runtime.backends.base import Precision, signature_of
from declip_runtime.backends.built_plan import BuiltPlanBackend
from declip_runtime.backends.tensorrt import gpu_index
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.engine_writer import add_plans, require_room_for_plans
from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.manifest import Plan
from declip_runtime.plan_builder import BuildOptions, build_plan
from declip_runtime.plan_check import check
from declip_runtime.plans import GRAPHS, Site, parse_profile
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

    Of a generator a plan of each of its models is built, and those that were built are kept where a later one fails. An
    engine keeps plans for any number of GPUs and TensorRT
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
    names = tuple(file.manifest.signatures) if component is None else (component,)
    known = {size for name in names for size in signature_of(file, name).free}
    if unknown := set(options.sizes) - known:
        of = "this engine" if component is None else f"{component} of this engine"
        listed = ", ".join(sorted(known))
        raise UsageError(f"--range {', '.join(sorted(unknown))}: free sizes of {of} are {listed}. Name one of them.")
    site = tensorrt_library.site(gpu_index(device))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".declip-build-") as folder:
        built: list[_Built] = []
        try:
            for name in names:
                free = signature_of(file, name).free
                own = replace(options, sizes={n: r for n, r in options.sizes.items() if n in free})
                with share_bar(f"building a plan of {name or file.manifest.name} for {site}") as progress:
                    plan, content = build_plan(
                        file,
                        own,
                        component=name,
                        precision=precision,
                        device=site.device,
                        cache=Cache(),
                        progress=progress,
                    )
                    progress("comparing it with the CPU", 1.0)
                    built.append(_kept(file, plan, content, site, Path(folder) / f"{len(built)}.plan"))
                del content  # it may be gigabytes, and lies in a file now
        except DeclipError:
            _ship(file, built, target)
            raise
        _ship(file, built, target)


@dataclass(frozen=True)
class _Built:
    """A plan whose bytes are in a file, and what the comparison with a CPU said."""

    plan: Plan
    path: Path
    compared: str


def _kept(engine: EngineFile, plan: Plan, content: bytes, site: Site, path: Path) -> _Built:
    """Compare a plan and put it into a file. Raises BackendExecutionError where it computes something else."""
    with closing(BuiltPlanBackend(engine, plan, content, f"cuda:{site.device}")) as backend:
        what = f"the plan {plan.entry}"
        missing = check(engine, backend.precision, backend.compute, backend.signature, what, plan.component)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}. Free some space.") from error
    compared = "compared with the engine on the CPU" if missing is None else f"not compared with a CPU: {missing}"
    return _Built(plan, path, compared)


def _ship(engine: EngineFile, built: Sequence[_Built], target: Path) -> None:
    """Write the engine with the plans to ``target``, and say so; nothing where there is none."""
    if not built:
        return
    add_plans(engine.path, [(each.plan, each.path) for each in built], target)
    for each in built:
        size = f"{each.path.stat().st_size / 1e6:,.1f} MB"
        click.echo(f"{visible(str(target))}: {each.plan.entry}, {size}, {each.plan.ranges}; {each.compared}")


def _ranges(texts: tuple[str, ...]) -> dict[str, Range]:
    ranges = {}
    for text in texts:
        name, equals, sizes = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is no range of sizes. Write it as height=64,64,96.")
        ranges[name.strip()] = parse_profile(sizes)
    return ranges
