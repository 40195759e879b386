"""A backend without a model, so that pipelines can be tested without one. Its scores mean nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendUnavailableError, PrecisionError

from .base import Backend, Output, Precision


class FakeBackend(Backend):
    """Scores from simple statistics of the pixels: fast, equal everywhere, and different for different images.

    It takes the names of the scores and the sizes from the engine, and never looks at graphs or weights. The score of
    an image does not depend on what else is in the batch.
    """

    name: ClassVar[str] = "fake"
    graphs: ClassVar[Mapping[Precision, str]] = {"fp32": "fp32"}

    @classmethod
    def available(cls) -> str | None:
        """Always None: it needs nothing."""
        return None

    @property
    def preferred_batch(self) -> int:
        """8, so that tests see several batches."""
        return 8

    @classmethod
    def _resolve_impl(cls, engine: EngineFile, device: str | None, precision: str) -> tuple[str, Precision]:
        if device not in (None, "cpu"):
            raise BackendUnavailableError(f"the fake backend has no device {device!r}. Leave device out.")
        if precision not in ("auto", "fp32"):
            raise PrecisionError(f"the fake backend has no {precision}. Use fp32.")
        return "cpu", "fp32"

    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        self.description = "fake: statistics of the pixels, no model, meaningless scores"
        names = self.engine.manifest.score_names
        digests = (hashlib.sha256(name.encode()).digest() for name in names)
        self._weights = np.array([np.frombuffer(d[:4], np.uint8) / 32.0 - 4.0 for d in digests])

    def _run_impl(self, images: npt.NDArray[np.uint8]) -> Output:
        pixels = images.astype(np.int64)  # sums of integers are exact, so equal on every machine
        flat = pixels.reshape(len(images), -1)
        statistics = np.stack(
            [
                flat.mean(axis=1) / 255.0,
                flat.std(axis=1) / 128.0,
                np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2, 3)) / 255.0,
                np.abs(np.diff(pixels, axis=3)).mean(axis=(1, 2, 3)) / 255.0,
            ],
            axis=1,
        )
        scores = 1.0 / (1.0 + np.exp(-statistics @ self._weights.T))
        width = self.engine.manifest.embedding_dim
        places = np.linspace(0, flat.shape[1] - 1, width).astype(np.int64)
        vectors = 1.0 + flat[:, places]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        perceptual = vectors.astype(np.float32)
        semantic = perceptual[:, ::-1].copy() if self.engine.manifest.has_semantic else None
        return Output(scores.astype(np.float32), perceptual, semantic)

    def _close_impl(self) -> None:
        pass
