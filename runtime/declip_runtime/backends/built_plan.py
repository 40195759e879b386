"""TensorRT with a plan that was just built, so that it can be compared before it is put into the engine file."""

from __future__ import annotations

from typing import Any

from declip_runtime import tensorrt_library
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.manifest import Plan
from declip_runtime.plans import Site

from .tensorrt import TensorRTBackend


class BuiltPlanBackend(TensorRTBackend):
    """The component of ``engine`` that ``plan`` was built of, run by it on ``device``; ``content`` are its bytes.

    Raises what ``Backend`` raises.
    """

    def __init__(self, engine: EngineFile, plan: Plan, content: bytes, device: str) -> None:
        self._plan, self._content = plan, content
        super().__init__(engine, component=plan.component, device=device, precision=plan.precision)

    def _known_plan(self, site: Site, log: tensorrt_library.Log, cache: Cache | None) -> Any:
        host_code = self._plan.version_compatible
        return tensorrt_library.read_plan(self._content, log, device=site.device, host_code=host_code)
