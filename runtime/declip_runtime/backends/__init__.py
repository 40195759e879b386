"""What executes a graph: one vendor a module, imported only when asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from declip_runtime.errors import BackendUnavailableError

if TYPE_CHECKING:
    from declip_runtime.cache import Cache
    from declip_runtime.engine_file import EngineFile

    from .base import Backend, Precision

REGISTRY = {
    "tensorrt": "declip_runtime.backends.tensorrt:TensorRTBackend",
    "openvino": "declip_runtime.backends.openvino:OpenVINOBackend",
    "onnxruntime": "declip_runtime.backends.onnxruntime:ONNXRuntimeBackend",
    "fake": "declip_runtime.backends.fake:FakeBackend",
}
"""Backend names and where their classes are."""

AUTO = ("tensorrt", "openvino", "onnxruntime")
"""What ``backend="auto"`` tries, fastest first."""


@dataclass(frozen=True)
class Choice:
    """What runs an engine: a backend's name, its device and precision."""

    backend: str
    device: str
    precision: Precision


def resolve(
    engine: EngineFile,
    backend: str = "auto",
    *,
    component: str = "",
    device: str | None = None,
    precision: str = "auto",
) -> Choice:
    """What ``choose`` would make, found without loading the model.

    A name gives that backend or raises; "auto" gives the first of ``AUTO`` that is installed, knows the precision and
    has the device. An engine that lacks the precision is an error and not a reason to try the next.

    Raises BackendUnavailableError with every reason, PrecisionError, UsageError.
    """
    if backend == "auto":
        reasons = []
        known = {p for name in AUTO for p in _class(name).graphs}
        for name in AUTO:
            if precision in known and precision not in _class(name).graphs:
                reasons.append(f"The {name} backend does not compute in {precision}.")
                continue
            try:
                return resolve(engine, name, component=component, device=device, precision=precision)
            except BackendUnavailableError as error:
                reasons.append(str(error))
        raise BackendUnavailableError(" ".join(reasons))
    kind = _class(backend)
    reason = kind.available()
    if reason is not None:
        raise BackendUnavailableError(f"backend {backend!r} cannot be used here: {reason}")
    return Choice(backend, *kind.resolve(engine, device, precision, component))


def choose(
    engine: EngineFile,
    backend: str = "auto",
    *,
    component: str = "",
    device: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
    cache: Cache | None = None,
) -> Backend:
    """Make the backend that ``resolve`` finds for ``engine``, or for one ``component`` of a generator.

    Raises what ``resolve`` and the backend's constructor raise; an engine that fails on it is no reason to try another.
    """
    choice = resolve(engine, backend, component=component, device=device, precision=precision)
    return _class(choice.backend)(
        engine,
        component=component,
        device=choice.device,
        precision=choice.precision,
        threads=threads,
        cache=cache,
    )


def available() -> dict[str, str | None]:
    """Every backend's name with None where it can be used here, else the reason and the fix."""
    return {name: _class(name).available() for name in REGISTRY}


def _class(name: str) -> type[Backend]:
    if name not in REGISTRY:
        raise BackendUnavailableError(f"backend={name!r} is unknown. Use one of: auto, {', '.join(REGISTRY)}.")
    module, attribute = REGISTRY[name].split(":")
    found: type[Backend] = getattr(importlib.import_module(module), attribute)
    return found
