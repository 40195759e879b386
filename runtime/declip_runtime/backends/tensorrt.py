"""TensorRT on an NVIDIA GPU: a plan from the engine, else one that was built here before, else one built now."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from declip_runtime import plan_builder, tensorrt_library
from declip_runtime.announce import Announcer
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import (
    BackendExecutionError,
    BackendUnavailableError,
    BackendWarning,
    CacheWarning,
    DeviceMemoryError,
    PrecisionError,
)
from declip_runtime.lanes import Lanes, OnDemand
from declip_runtime.plan_check import check
from declip_runtime.plan_lane import PlanLane, require_signature
from declip_runtime.plans import GRAPHS, Site, best_plan, refusals, slug
from declip_runtime.signature import BATCH, Array, Arrays, Range, Sizes

from .base import Backend, Precision

if TYPE_CHECKING:
    import tensorrt as trt

_DEVICE = re.compile(r"cuda(?::(\d+))?", re.ASCII | re.IGNORECASE)


class TensorRTBackend(Backend):
    """An engine's plan run by TensorRT or its lean runtime; ``device`` is "cuda" (the first GPU) or "cuda:N".

    Precision "auto" is fp16 where the engine carries that graph, else fp32; "int8" and "fp8" are FP16 around the
    engine's quantized products. A plan in the engine is used where it was built for this TensorRT, GPU and graph; else
    one from the cache; else it is built, which takes from seconds to minutes, is told on standard error, compared with
    the engine on the CPU, and kept in the cache. The lean runtime needs a version-compatible plan.
    """

    name: ClassVar[str] = "tensorrt"
    graphs: ClassVar[Mapping[Precision, str]] = GRAPHS

    @classmethod
    def available(cls) -> str | None:
        """None where TensorRT, a driver and a GPU are here, else the reason and the fix."""
        return tensorrt_library.unavailable()

    @property
    def preferred_batch(self) -> int:
        """As many as two lanes take, so that copying the one half overlaps computing the other."""
        return 2 * self._runner.capacity if isinstance(self._runner, Lanes) else self.signature.free[BATCH].optimum

    @classmethod
    def _resolve_impl(
        cls, engine: EngineFile, device: str | None, precision: str, component: str
    ) -> tuple[str, Precision]:
        half: Precision = "fp16" if "fp16" in engine.manifest.kinds(component) else "fp32"
        known: dict[str, Precision] = {"auto": half, **{name: name for name in GRAPHS}}
        if precision not in known:
            raise PrecisionError(f"the TensorRT backend has no plans in {precision}. Use {', '.join(GRAPHS)}.")
        index, arithmetic = gpu_index(device or "cuda"), known[precision]
        site = tensorrt_library.site(index)
        site.require_arithmetic(arithmetic)
        if site.lean and best_plan(engine, arithmetic, site, component) is None:
            raise BackendUnavailableError(
                f"the lean runtime of TensorRT {site.tensorrt} builds no plans, and {engine.path} has none that fits."
                f" {refusals(engine, arithmetic, site, component)} Run on a machine with TensorRT:"
                " declip build ENGINE --version-compatible"
            )
        return f"cuda:{index}", arithmetic

    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        site = tensorrt_library.site(gpu_index(self.device))
        log = tensorrt_library.Log()
        plan = self._known_plan(site, log, cache)
        if plan is not None:
            self._open(plan, site, log)
            return
        content = self._build(site, log, cache)
        if cache is not None:
            name = self._cache_name(site)
            cache.put(name, len(content), lambda file: file.write(content), engine=self.engine.id[:12])

    def _known_plan(self, site: Site, log: tensorrt_library.Log, cache: Cache | None) -> trt.ICudaEngine | None:
        """The engine's own plan for ``site``, else the cache's; None where neither can be used."""
        own = best_plan(self.engine, self.precision, site, self.component)
        if own is not None:
            content, host_code = self.engine.read(own.entry), own.version_compatible
            try:
                return tensorrt_library.read_plan(content, log, device=site.device, host_code=host_code)
            except BackendExecutionError as error:
                if site.lean or isinstance(error, DeviceMemoryError):
                    raise
                warnings.warn(
                    f"the engine's plan {own.entry} cannot be used: {error} Another is built.", BackendWarning, 2
                )
        kept = None if cache is None else cache.get(self._cache_name(site))
        if kept is not None:
            try:
                return tensorrt_library.read_plan(kept, log, device=site.device, host_code=False)
            except DeviceMemoryError:
                raise
            except BackendExecutionError as error:
                warnings.warn(f"the plan in the cache cannot be used: {error} It is built anew.", CacheWarning, 2)
        return None

    def _build(self, site: Site, log: tensorrt_library.Log, cache: Cache | None) -> bytes:
        """Build a plan, open it, and compare it with the engine on the CPU; its bytes."""
        unfit = refusals(self.engine, self.precision, site, self.component)
        of = f"{self.component} of {self.engine.manifest.name}" if self.component else self.engine.manifest.name
        what = f"building a plan of {of} for {site}, which is done once. {unfit}".rstrip()
        with Announcer(what) as tell:
            _, content = plan_builder.build_plan(
                self.engine,
                component=self.component,
                precision=self.precision,
                device=site.device,
                cache=cache,
                progress=tell,
            )
            tell("starting it, and comparing it with the CPU", 1.0)
            self._open(tensorrt_library.read_plan(content, log, device=site.device, host_code=False), site, log)
            what = f"the plan that TensorRT {site.tensorrt} has built for {site.device_name}"
            if check(self.engine, self.precision, self._unchecked, self.signature, what, self.component) is not None:
                self.description += ", not compared with a CPU"
        return content

    def _cache_name(self, site: Site) -> str:
        """Different for everything that a plan is built from; sizes are no part of the engine's id."""
        what = f"{self.component}-{self.precision}" if self.component else self.precision
        return f"{self.engine.id[:12]}-{what}-{self.signature.ranges}-{slug(site)}"

    def _open(self, plan: trt.ICudaEngine, site: Site, log: tensorrt_library.Log) -> None:
        """Make the lanes that run ``plan``, and say what it is; ``signature`` gets the sizes that the plan takes."""
        require_signature(plan, self.signature)
        self.signature = self.signature.narrowed(self._ranges(plan))
        smallest, typical, largest = ({n: r[which] for n, r in self.signature.free.items()} for which in range(3))
        lanes: list[PlanLane] = []

        def open_lane(capacity: int) -> PlanLane:
            sizes = {**largest, BATCH: capacity}
            lanes.append(PlanLane(plan, self.signature, sizes, site.device, log))
            return lanes[-1]

        self._runner: Lanes | OnDemand
        if set(self.signature.free) == {BATCH}:
            self._runner = Lanes(open_lane, largest[BATCH], smallest[BATCH])
        else:
            self._runner = OnDemand(open_lane(largest[BATCH]), typical, smallest)
        graphs = "" if lanes[-1].captured else ", without CUDA graphs"
        self.description = f"TensorRT {site.tensorrt}, {site.device_name}, {self.precision}{graphs}"

    def _ranges(self, plan: trt.ICudaEngine) -> dict[str, Range]:
        """The sizes that the plan takes."""
        found: dict[str, Range] = {}
        for name, spec in self.signature.inputs.items():
            low, best, high = plan.get_tensor_profile_shape(name, 0)
            for axis, size in enumerate(spec.shape):
                if isinstance(size, str):
                    found[size] = Range(low[axis], best[axis], high[axis])
        return found

    def _compute_impl(self, inputs: Arrays, sizes: Sizes) -> dict[str, Array]:
        if isinstance(self._runner, Lanes):
            return self._runner.run(inputs)
        return self._runner.run(inputs, sizes)

    def _unchecked(self, inputs: Arrays) -> dict[str, Array]:
        return self._compute_impl(inputs, self.signature.sizes(inputs))

    def _close_impl(self) -> None:
        self._runner.close()


def gpu_index(device: str) -> int:
    """The GPU's number in "cuda" (0) or "cuda:N". Raises BackendUnavailableError for another device."""
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise BackendUnavailableError(f"device={device!r} is unknown to the TensorRT backend. Use cuda or cuda:0.")
    return int(match[1] or 0)
