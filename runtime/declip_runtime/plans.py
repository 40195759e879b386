"""Which TensorRT plan of an engine a machine can run, and why not another. No vendor library is needed to tell.

TensorRT itself finds out only while it deserialises, then returns nothing and says little, or runs a plan that was
tuned for another GPU. So everything that decides stands in the manifest and is compared before.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from .backends.base import Precision
from .engine_file import WEIGHTS, EngineFile
from .errors import PrecisionError, UsageError
from .manifest import Plan
from .signature import Range

GRAPHS: Mapping[Precision, str] = {"fp16": "fp16", "fp32": "fp32", "int8": "int8-fp16", "fp8": "fp8"}
"""The engine's graph that plans of each precision are built from."""

_AMPERE = (8, 0)
_ADA = (8, 9)


@dataclass(frozen=True)
class Site:
    """Where a plan is built or run.

    ``tensorrt`` is the library's version, as 10.3.0; ``lean`` that it is the lean runtime, which builds nothing and
    runs version-compatible plans only; ``compute_capability`` as 8.7; ``platform`` as linux-x86_64. Boards of one name
    differ in their number of ``multiprocessors``; ``integrated`` is the GPU of a Jetson.
    """

    device: int
    device_name: str
    compute_capability: str
    tensorrt: str
    lean: bool = False
    multiprocessors: int = 0
    integrated: bool = False
    platform: str = field(default_factory=lambda: f"{sys.platform}-{platform.machine().lower()}")

    def __str__(self) -> str:
        library = "the lean runtime of TensorRT" if self.lean else "TensorRT"
        return f"{self.device_name} (compute capability {self.compute_capability}) with {library} {self.tensorrt}"

    def require_arithmetic(self, precision: str) -> None:
        """Raise PrecisionError unless this GPU multiplies in ``precision``."""
        if precision == "fp8" and version(self.compute_capability) < _ADA:
            raise PrecisionError(f"{self.device_name} does not multiply fp8, Ada and newer GPUs do. Use fp16 or int8.")


def best_plan(engine: EngineFile, precision: str, site: Site, component: str = "") -> Plan | None:
    """The plan of ``component`` in ``precision`` that runs at ``site``; one built for exactly it first."""
    wanted = [p for p in engine.manifest.plans if (p.component, p.precision) == (component, precision)]
    usable = [p for p in wanted if mismatch(engine, p, site) is None]
    return min(usable, key=lambda p: (p.hardware_compatible, p.version_compatible), default=None)


def mismatch(engine: EngineFile, plan: Plan, site: Site) -> str | None:
    """Why ``plan`` cannot run at ``site``, or is not of ``engine``; None where it can."""
    kind = next((kind for precision, kind in GRAPHS.items() if precision == plan.precision), "")
    graph = engine.manifest.graph_name(plan.component, kind)
    if graph not in engine.manifest.graphs or plan.graph_sha256 != source_hash(engine, graph):
        return "it was built from another graph or other weights than the engine's"
    if plan.platform != site.platform:
        return f"it was built on {plan.platform or 'an unknown platform'}, here is {site.platform}"
    if plan.tensorrt != site.tensorrt:
        if not plan.version_compatible or plan.without_lean:
            return f"it was built by TensorRT {plan.tensorrt}, here is {site.tensorrt}"
        built, here = version(plan.tensorrt), version(site.tensorrt)
        if built[0] != here[0] or built > here:
            return (
                f"TensorRT {plan.tensorrt} built it for later releases of version {built[0]}, here is {site.tensorrt}"
            )
    if site.lean and not plan.version_compatible:
        return "the lean runtime runs version-compatible plans only"
    if plan.hardware_compatible:
        if version(site.compute_capability) < _AMPERE:
            return f"it runs on Ampere and newer, {site.device_name} is older"
    elif plan.compute_capability != site.compute_capability:
        return f"it was built for compute capability {plan.compute_capability}, here is {site.compute_capability}"
    elif (plan.device_name, plan.multiprocessors) != (site.device_name, site.multiprocessors):
        return (
            f"it was tuned for {plan.device_name} with {plan.multiprocessors} multiprocessors,"
            f" here is {site.device_name} with {site.multiprocessors}"
        )
    return None


def source_hash(engine: EngineFile, graph: str) -> str:
    """Hex SHA-256 over the graph of that name and the weights, which is all that a plan is built from."""
    entries = engine.manifest.entries
    both = entries[engine.manifest.graphs[graph]].sha256 + entries[WEIGHTS].sha256
    return hashlib.sha256(both.encode()).hexdigest()


def refusals(engine: EngineFile, precision: str, site: Site, component: str = "") -> str:
    """Why each plan of ``component`` does not run at ``site`` in ``precision``, a sentence each."""
    reasons = {
        plan.entry: mismatch(engine, plan, site)
        or (f"it computes in {plan.precision}, not in {precision}" if plan.precision != precision else None)
        for plan in engine.manifest.plans
        if plan.component == component
    }
    return " ".join(f"Plan {entry} does not fit: {reason}." for entry, reason in reasons.items() if reason is not None)


def slug(site: Site) -> str:
    """GPU and TensorRT as a part of a file name: orin-sm87x8-tensorrt-10.3.0."""
    gpu = re.sub(r"[^a-z0-9]+", "-", site.device_name.lower()).strip("-") or "gpu"
    units = f"sm{site.compute_capability.replace('.', '')}x{site.multiprocessors}"
    return f"{gpu}-{units}-tensorrt-{site.tensorrt}"


def entry_name(
    site: Site, precision: str, component: str = "", *, version_compatible: bool, hardware_compatible: bool
) -> str:
    """Where in the engine a plan lies: one entry for each kind of machine, so that building again replaces it."""
    reach = "-any-version" * version_compatible + "-any-gpu" * hardware_compatible
    what = f"{component}-{precision}" if component else precision
    return f"plans/{site.platform}/{slug(site)}-{what}{reach}.plan"


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, as (10, 16, 1, 11)."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0].partition("post")[0]))


def parse_profile(text: str) -> Range:
    """A range of sizes from "1,16,64" (smallest, tuned for, largest), or from the largest alone. Raises UsageError."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if len(numbers) == 1:
        numbers = [1, *numbers, *numbers]
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise UsageError(
            f"{text!r} is no range of sizes. Give the smallest, the one to tune for and the largest, as 1,16,64."
        )
    return Range(*numbers)
