"""Mixed batches for pre-training: rated photos, ladders of distortions, captioned photos.

Each batch is a pure function of (seed, step), so a run that was killed continues with the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .biq2021 import SUBSETS, Rated
from .distortions import DISTORTIONS, distort
from .flickr8k import Captioned

Pixels = npt.NDArray[np.uint8]
LADDER_RUNGS = 4


@dataclass(frozen=True)
class BatchLabels:
    """What is known of a batch's images, which stand in this order: rated, ladders rung by rung, captioned.

    ``mos`` float32 [B] and ``subset`` int64 [B] belong to the rated ones; ``kinds`` (T) and ``severities`` float32
    [T, R] to the ladders, severity 0 being the clean photo. ``captions`` are one for each captioned image, then more
    without an image (negatives); ``captioned_kinds`` and ``captioned_severities`` [C] say how those images were
    distorted (severity 0: not at all).
    """

    mos: npt.NDArray[np.float32]
    subset: npt.NDArray[np.int64]
    kinds: tuple[str, ...]
    severities: npt.NDArray[np.float32]
    captions: tuple[str, ...]
    captioned_kinds: tuple[str, ...]
    captioned_severities: npt.NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BatchLabels:
        """Inverse of ``to_dict``."""
        return cls(
            np.array(data["mos"], np.float32),
            np.array(data["subset"], np.int64),
            tuple(data["kinds"]),
            np.array(data["severities"], np.float32),
            tuple(data["captions"]),
            tuple(data["captioned_kinds"]),
            np.array(data["captioned_severities"], np.float32),
        )


@dataclass(frozen=True)
class Batch:
    """One step's images, uint8 [N, S, S, 3], and what is known of them."""

    pixels: Pixels
    labels: BatchLabels


@dataclass(frozen=True)
class BatchShape:
    """How many of each kind a batch holds; ``rated`` counts ss01, ss02, ss03.

    ``distorted_captions`` is the share of captioned photos that are distorted: with it a photo has a perceptual
    description (the distortion) and a semantic one (the caption) that vary independently, which is I&2T.
    """

    rated: tuple[int, int, int] = (11, 9, 20)
    ladders: int = 5
    captioned: int = 16
    extra_captions: int = 32
    distorted_captions: float = 0.0


class BatchSource:
    """Draws batches from banks that ``build_pixel_bank`` made.

    ``rated_pixels`` row i belongs to ``rated[i]``, ``captioned_pixels`` likewise; ``clean_pixels`` holds more photos
    of good quality that ladders may start from, beside the rated ones with a MOS of at least ``clean_mos``.
    """

    def __init__(
        self,
        rated: Sequence[Rated],
        rated_pixels: Pixels,
        clean_pixels: Pixels,
        captioned: Sequence[Captioned],
        captioned_pixels: Pixels,
        shape: BatchShape,
        *,
        seed: int,
        clean_mos: float = 0.65,
    ) -> None:
        self._rated_pixels, self._clean_pixels, self._captioned_pixels = rated_pixels, clean_pixels, captioned_pixels
        self._mos = np.array([p.mos for p in rated], np.float32)
        subset = np.array([SUBSETS.index(p.subset) for p in rated])
        self._members = [np.flatnonzero(subset == k) for k in range(len(SUBSETS))]
        self._clean_rated = np.flatnonzero(self._mos >= clean_mos)
        self._captions = [p.captions for p in captioned]
        self._shape, self._seed = shape, seed

    def batch(self, step: int, crop: int) -> Batch:
        """The batch of ``step``, images cropped to ``crop`` x ``crop`` at random and mirrored half of the time."""
        rng = np.random.default_rng((self._seed, step))
        shape = self._shape
        picks = [rng.choice(m, n, replace=False) for m, n in zip(self._members, shape.rated, strict=True)]
        rated = np.concatenate(picks)
        images = [_random_crop(self._rated_pixels[i], crop, rng) for i in rated]
        kinds = tuple(str(k) for k in rng.choice(list(DISTORTIONS), shape.ladders))
        severities = np.zeros((shape.ladders, LADDER_RUNGS), np.float32)
        for row, kind in zip(severities, kinds, strict=True):
            row[1:] = _graded(rng)
            clean = _random_crop(self._clean(rng), crop, rng)
            seed = int(rng.integers(2**32))
            images += [clean, *(distort(clean, kind, float(s), np.random.default_rng(seed)) for s in row[1:])]
        count = shape.captioned + shape.extra_captions
        chosen = rng.choice(len(self._captions), count, replace=False)
        captioned = [_random_crop(self._captioned_pixels[i], crop, rng) for i in chosen[: shape.captioned]]
        captions = tuple(self._captions[i][rng.integers(len(self._captions[i]))] for i in chosen)
        captioned_kinds = tuple(str(k) for k in rng.choice(list(DISTORTIONS), shape.captioned))
        strong = rng.uniform(0.15, 1.0, shape.captioned) * (rng.random(shape.captioned) < shape.distorted_captions)
        images += [
            distort(p, k, float(s), rng) if s > 0 else p
            for p, k, s in zip(captioned, captioned_kinds, strong, strict=True)
        ]
        subset = np.repeat(np.arange(len(SUBSETS)), shape.rated)
        labels = BatchLabels(
            self._mos[rated], subset, kinds, severities, captions, captioned_kinds, strong.astype(np.float32)
        )
        return Batch(np.stack(images), labels)

    def _clean(self, rng: np.random.Generator) -> Pixels:
        if rng.random() < 0.5:
            chosen: Pixels = self._clean_pixels[rng.integers(len(self._clean_pixels))]
        else:
            chosen = self._rated_pixels[rng.choice(self._clean_rated)]
        return chosen


def _graded(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Three rising severities in 0..1, at least 0.1 apart; half of the ladders stay in the subtler part."""
    top = 1.0 if rng.random() < 0.5 else 0.55
    slack = np.sort(rng.uniform(0, top - 0.2, LADDER_RUNGS - 1))
    return (slack + 0.1 * np.arange(LADDER_RUNGS - 1)).astype(np.float32)


def _random_crop(pixels: Pixels, crop: int, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
    window = pixels[top : top + crop, left : left + crop]
    return np.ascontiguousarray(window[:, ::-1] if rng.random() < 0.5 else window)
