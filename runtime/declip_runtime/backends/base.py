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
from declip_runtime.errors import BackendExecutionError, InvalidArrayError, PrecisionError, ScorerStateError, UsageError

Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]


@dataclass(frozen=True)
class Output:
    """What the graph gives for B images.

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
        device: where; None is the backend's default.
        precision: the arithmetic; "auto" takes the fastest that keeps the scores, and ``precision`` then says which.
        threads: CPU threads to compute with; None is what this process may use.
        cache: where compiled models are kept; None keeps none.

    ``run`` may be called from several threads at once. ``description`` names library, version, device and precision.

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
        device: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        cache: Cache | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads} cannot work. Give at least 1.")
        self.engine = engine
        self.device, self.precision = self.resolve(engine, device, precision)
        self._closed = False
        self._running = 0
        self._change = threading.Condition()
        self._load_impl(threads, cache)

    @classmethod
    @abstractmethod
    def available(cls) -> str | None:
        """None where this backend can be used here, else the reason and the fix in one or two sentences."""

    @classmethod
    def resolve(cls, engine: EngineFile, device: str | None = None, precision: str = "auto") -> tuple[str, Precision]:
        """Device and precision that an instance would have, found without loading the model.

        Raises BackendUnavailableError for a device, PrecisionError and UsageError for a precision that cannot be had.
        """
        if precision != "auto" and precision not in get_args(Precision):
            raise UsageError(f"precision={precision!r} is unknown. Use one of: auto, {', '.join(get_args(Precision))}.")
        found, arithmetic = cls._resolve_impl(engine, device, precision)
        graph_for(engine, arithmetic, cls.graphs)
        return found, arithmetic

    @property
    def graph(self) -> str:
        """The name of the engine's graph that this backend runs."""
        return graph_for(self.engine, self.precision, self.graphs)

    @property
    @abstractmethod
    def preferred_batch(self) -> int:
        """The batch that is fast without taking much memory."""

    def run(self, images: npt.NDArray[np.uint8]) -> Output:
        """Run the graph on uint8 [B, S, S, 3] (RGB), S as in the manifest, B any number, also 0.

        Raises InvalidArrayError, ScorerStateError after ``close``, BackendExecutionError.
        """
        manifest, size = self.engine.manifest, self.engine.manifest.preprocess.size
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            given = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
            raise InvalidArrayError(f"this engine takes uint8 [B, {size}, {size}, 3], not {given}.")
        scores, width = (len(images), len(manifest.scores)), (len(images), manifest.embedding_dim)
        if not len(images):
            none = np.empty(width, np.float32)
            return Output(np.empty(scores, np.float32), none, none if manifest.has_semantic else None)
        with self._in_use():
            output = self._run_impl(np.ascontiguousarray(images))
        if output.scores.shape != scores or output.perceptual.shape != width:
            raise BackendExecutionError(
                f"the graph gives scores {list(output.scores.shape)} and embeddings {list(output.perceptual.shape)},"
                f" the manifest says {list(scores)} and {list(width)}. Export the engine again."
            )
        return output

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
                raise ScorerStateError("this model was closed. Make a new Scorer.")
            self._running += 1
        try:
            yield
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()

    @classmethod
    @abstractmethod
    def _resolve_impl(cls, engine: EngineFile, device: str | None, precision: str) -> tuple[str, Precision]:
        """What ``resolve`` returns, for a precision that exists or "auto"."""

    @abstractmethod
    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        """Compile for ``device`` and ``precision``; set ``description``."""

    @abstractmethod
    def _run_impl(self, images: npt.NDArray[np.uint8]) -> Output:
        """Run on checked, contiguous, non-empty images."""

    @abstractmethod
    def _close_impl(self) -> None:
        """Let go of the vendor's objects."""


def graph_for(engine: EngineFile, precision: Precision, graphs: Mapping[Precision, str]) -> str:
    """The name of the engine's graph that ``graphs`` has for ``precision``.

    Raises PrecisionError where the engine does not carry it.
    """
    name = graphs[precision]
    if name not in engine.manifest.graphs:
        eight = next((option for option in ("int8", "fp8") if name.startswith(option)), None)
        added = "again" if eight is None else f"with photos that calibrate it (--{eight} PHOTOS)"
        raise PrecisionError(
            f"engine {engine.manifest.name!r} carries no {name} graph; it has {', '.join(engine.manifest.graphs)}."
            f" Export it {added}, or choose another precision."
        )
    return name
