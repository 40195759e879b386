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
from declip_runtime.signature import BATCH, Array, Arrays, Sizes

from .base import Backend, Precision


class FakeBackend(Backend):
    """Scores from simple statistics of the pixels: fast, equal everywhere, and different for different images.

    It takes the names of the scores and the sizes from the engine, and never looks at graphs or weights. The score of
    an image does not depend on what else is in the batch. Components of a generator give noise that depends on their
    inputs.
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
    def _resolve_impl(
        cls, engine: EngineFile, device: str | None, precision: str, component: str
    ) -> tuple[str, Precision]:
        if device not in (None, "cpu"):
            raise BackendUnavailableError(f"the fake backend has no device {device!r}. Leave device out.")
        if precision not in ("auto", "fp32"):
            raise PrecisionError(f"the fake backend has no {precision}. Use fp32.")
        return "cpu", "fp32"

    def _load_impl(self, threads: int | None, cache: Cache | None) -> None:
        self.description = "fake: statistics of the inputs, no model, meaningless results"
        names = self.signature.outputs if self.component else self.engine.scorer.score_names
        digests = (hashlib.sha256(name.encode()).digest() for name in names)
        self._weights = np.array([np.frombuffer(d[:4], np.uint8) / 32.0 - 4.0 for d in digests])

    def _compute_impl(self, inputs: Arrays, sizes: Sizes) -> dict[str, Array]:
        return self._noise(inputs, sizes) if self.component else self._scores(inputs["images"])

    def _scores(self, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
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
        manifest = self.engine.scorer
        places = np.linspace(0, flat.shape[1] - 1, manifest.embedding_dim).astype(np.int64)
        vectors = 1.0 + flat[:, places]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        outputs = {"scores": scores.astype(np.float32), "perceptual": vectors.astype(np.float32)}
        if manifest.has_semantic:
            outputs["semantic"] = outputs["perceptual"][:, ::-1].copy()
        return outputs

    def _noise(self, inputs: Arrays, sizes: Sizes) -> dict[str, Array]:
        """For every row of the batch values in 0..1 that its inputs' bytes decide, and nothing else."""
        outputs = self.signature.empty(sizes)
        for row in range(sizes[BATCH]):
            content = b"".join(name.encode() + inputs[name][row].tobytes() for name in sorted(inputs))
            random = np.random.default_rng(list(hashlib.sha256(content).digest()))
            for array in outputs.values():
                array[row] = random.random(array.shape[1:])
        return outputs

    def _close_impl(self) -> None:
        pass
