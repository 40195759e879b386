"""What every backend is: public methods check, ``_impl`` methods do the work."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import PrecisionError, ScorerStateError, UsageError
from declip_runtime.signature import Array, Arrays, Signature, Sizes

Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]


@dataclass(frozen=True)
class Output:
    """What a scorer's graph gives for B images.

    ``scores`` float32 [B, K] raw, in the manifest's order; ``perceptual`` float32 [B, D], L2-normalised; ``semantic``
    likewise, None where the engine has none. The arrays are the caller's own.
    """

    scores: npt.NDArray[np.float32]
    perceptual: npt.NDArray[np.float32]
    semantic: npt.NDArray[np.float32] | None = None


class Backend(ABC):
    """One engine, compiled and ready to run.

    Args:
        engine: what to run.
        component: which of the engine's models; '' is a scorer's only one.
        device: where; None is the backend's default.
        precision: the arithmetic; "auto" takes the fastest that keeps the scores, and ``precision`` then says which.
        threads: CPU threads to compute with; None is what this process may use.
        cache: where compiled models are kept; None keeps none.

    ``compute`` and ``run`` may be called from several threads at once. ``signature`` is what ``compute`` takes and
    gives, ``description`` names library, version, device and precision.

    Raises BackendUnavailableError, PrecisionError, BackendExecutionError where the vendor library fails, EngineError
    for a damaged graph, UsageError.
    """

    name: ClassVar[str]
    graphs: ClassVar[Mapping[Precision, str]]
    """The engine's graph that each precision of this backend computes from."""
    device: str
    precision: Precision
    description: str

    def __init__(
        self,
        engine: EngineFile,
        *,
        component: str = "",
        device: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        cache: Cache | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads} cannot work. Give at least 1.")
        self.engine, self.component = engine, component
        self.signature = signature_of(engine, component)
        self.device, self.precision = self.resolve(engine, device, precision, component)
        self._closed = False
        self._running = 0
        self._change = threading.Condition()
        self._load_impl(threads, cache)

    @classmethod
    @abstractmethod
    def available(cls) -> str | None:
        """None where this backend can be used here, else the reason and the fix in one or two sentences."""

    @classmethod
    def resolve(
        cls, engine: EngineFile, device: str | None = None, precision: str = "auto", component: str = ""
    ) -> tuple[str, Precision]:
        """Device and precision that an instance would have, found without loading the model.

        Raises BackendUnavailableError for a device, PrecisionError and UsageError for a precision that cannot be had,
        UsageError for a component that the engine lacks.
        """
        signature_of(engine, component)
        if precision != "auto" and precision not in get_args(Precision):
            raise UsageError(f"precision={precision!r} is unknown. Use one of: auto, {', '.join(get_args(Precision))}.")
        found, arithmetic = cls._resolve_impl(engine, device, precision, component)
        graph_for(engine, arithmetic, cls.graphs, component)
        return found, arithmetic

    @property
    def graph(self) -> str:
        """The name of the engine's graph that this backend runs."""
        return graph_for(self.engine, self.precision, self.graphs, self.component)

    @property
    @abstractmethod
    def preferred_batch(self) -> int:
        """The batch that is fast without taking much memory."""

    def run(self, images: npt.NDArray[np.uint8]) -> Output:
        """Score uint8 [B, S, S, 3] (RGB), S as in the scorer's manifest, B any number, also 0.

        Raises InvalidArrayError, ScorerStateError after ``close``, BackendExecutionError.
        """
        found = self.compute({"images": images})
        return Output(found["scores"], found["perceptual"], found.get("semantic"))

    def compute(self, inputs: Arrays) -> dict[str, Array]:
        """Run the graph on ``inputs`` as ``signature`` describes them; the outputs are the caller's own.

        Any free size may be 0. Raises InvalidArrayError, ScorerStateError after ``close``, BackendExecutionError.
        """
        sizes = self.signature.sizes(inputs)
        if not min(sizes.values()):
            return self.signature.empty(sizes)
        with self._in_use():
            outputs = self._compute_impl({name: np.ascontiguousarray(a) for name, a in inputs.items()}, sizes)
        self.signature.require_outputs(outputs, sizes)
        return outputs

    def close(self) -> None:
        """Free the compiled model, when every ``run`` that has begun is done. May be called twice."""
        with self._change:
            first, self._closed = not self._closed, True
            self._change.wait_for(lambda: not self._running)
        if first:
            self._close_impl()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._change:
            if self._closed:
                raise ScorerStateError("this model was closed. Make a new Scorer or DPAdapter.")
            self._running += 1
        try:
            yield
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()

    @classmethod
    @abstractmethod
    def _resolve_impl(
        cls, engine: EngineFile, device: str | None, precision: str, component: str
    ) -> tuple[str, Precision]:
        """What ``resolve`` returns, for a precision that exists or "auto"."""

    @abstractmethod
    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        """Compile for ``device`` and ``precision``; set ``description``."""

    @abstractmethod
    def _compute_impl(self, inputs: Arrays, sizes: Sizes) -> dict[str, Array]:
        """Run on checked, contiguous inputs whose free dimensions have these ``sizes``, none of them 0."""

    @abstractmethod
    def _close_impl(self) -> None:
        """Let go of the vendor's objects."""


def signature_of(engine: EngineFile, component: str) -> Signature:
    """What a component takes and gives. Raises UsageError for a component that the engine lacks."""
    signatures = engine.manifest.signatures
    if component not in signatures:
        if "" in signatures:
            raise UsageError(f"{engine.path} scores photos and has no component {component!r}. Leave component out.")
        known = f"one of its components: {', '.join(signatures)}"
        if component:
            raise UsageError(f"{engine.path} has no component {component!r}. Name {known}.")
        raise UsageError(
            f"{engine.path} generates pictures and scores none. Use DPAdapter or declip generate, or name {known}."
        )
    return signatures[component]


def graph_for(engine: EngineFile, precision: Precision, graphs: Mapping[Precision, str], component: str = "") -> str:
    """The name of the engine's graph that ``graphs`` has for ``precision``.

    Raises PrecisionError where the engine does not carry it.
    """
    kind, manifest = graphs[precision], engine.manifest
    if kind not in manifest.kinds(component):
        eight = next((option for option in ("int8", "fp8") if kind.startswith(option)), None)
        has = ", ".join(manifest.graph_name(component, k) for k in manifest.kinds(component))
        usable = " or ".join(p for p, each in graphs.items() if each in manifest.kinds(component))
        if eight is None:
            fix = f"Export it again, or use precision {usable}"
        elif eight in manifest.kinds(component):
            fix = f"Export it without --no-fp16, or use a CPU (backend='openvino', precision='{eight}')"
        elif component:
            fix = f"Engines that generate have no {eight} graphs: use precision {usable}"
        else:
            fix = f"Export it with photos that calibrate it (--{eight} PHOTOS), or use precision {usable}"
        raise PrecisionError(
            f"engine {manifest.name!r} carries no {manifest.graph_name(component, kind)} graph; it has {has}. {fix}."
        )
    return manifest.graph_name(component, kind)
