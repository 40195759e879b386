"""Mixed batches for pre-training: rated photos, ladders of distortions, captioned photos.

Each batch is a pure function of (seed, step), so a run that was killed continues with the batches it would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .attributes import ALTERATIONS, CHANGES, MEASURED, measure
from .biq2021 import SUBSETS, Rated
from .distortions import DISTORTIONS, NOISES, distort, ladder, scaled, softened
from .flickr8k import Captioned

Pixels = npt.NDArray[np.uint8]
LADDER_RUNGS = 4
FAINT = 0.45
_ALL = {**CHANGES, **DISTORTIONS}


@dataclass(frozen=True)
class BatchLabels:
    """What is known of a batch's images, which stand in this order: rated, ladders rung by rung, captioned.

    ``mos`` float32 [B], ``subset`` int64 [B] and ``measured`` float32 [B, 3] (MEASURED) belong to the rated ones;
    ``kinds`` (T) and ``severities`` float32 [T, R] to the ladders, severity 0 being the clean photo: of distortions
    first, of alterations last. ``captions`` are one for each captioned image, then more
    without an image (negatives); ``captioned_kinds`` and ``captioned_severities`` [C] say how those images were
    distorted (severity 0: not at all).
    """

    mos: npt.NDArray[np.float32]
    subset: npt.NDArray[np.int64]
    measured: npt.NDArray[np.float32]
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
            np.array(data["measured"], np.float32),
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
    ``ladder_odds`` makes ladders of a kind more frequent; 1 where it says nothing, and a kind of 0 does not occur at
    all. ``scaling`` below 1 scales
    ladders by nearly as much as whole photos more often than by less. ``stored`` are the kinds that happen to the file,
    before a photo is scaled for the tower. ``faint`` is the share of a noise's ladders whose clean picture is a little
    soft and whose noise is faint, as the mean of many shots and one of them are. ``alterations`` are ladders of changes
    that make a photo other, not worse.
    """

    rated: tuple[int, int, int] = (11, 9, 20)
    ladders: int = 5
    captioned: int = 16
    extra_captions: int = 32
    distorted_captions: float = 0.0
    ladder_odds: Mapping[str, float] = field(default_factory=dict)
    scaling: float = 1.0
    stored: frozenset[str] = frozenset({"jpeg"})
    faint: float = 0.0
    alterations: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The distortions that occur."""
        return tuple(kind for kind in DISTORTIONS if self.ladder_odds.get(kind, 1.0) > 0)

    def to_json(self) -> str:
        """The same text for the same shape, in any process."""
        return json.dumps({**vars(self), "ladder_odds": dict(self.ladder_odds), "stored": sorted(self.stored)})


class BatchSource:
    """Draws batches from banks that ``build_pixel_bank`` made.

    ``rated_pixels`` row i belongs to ``rated[i]``, ``captioned_pixels`` likewise; a cut through a captioned photo is
    scaled as the whole photo would be, to the side of the rated ones. Ladders start from photos of good quality: one
    of the ``clean`` banks is drawn, then a photo of it. Such a bank holds its photos closer to what their files hold,
    and a cut is scaled by a factor between 1 and what the whole photo would be scaled by.
    """

    def __init__(
        self,
        rated: Sequence[Rated],
        rated_pixels: Pixels,
        clean: Sequence[Pixels],
        captioned: Sequence[Captioned],
        captioned_pixels: Pixels,
        shape: BatchShape,
        *,
        seed: int,
    ) -> None:
        self._rated_pixels, self._clean, self._captioned_pixels = rated_pixels, clean, captioned_pixels
        self._mos = np.array([p.mos for p in rated], np.float32)
        subset = np.array([SUBSETS.index(p.subset) for p in rated])
        self._members = [np.flatnonzero(subset == k) for k in range(len(SUBSETS))]
        self._captions = [p.captions for p in captioned]
        self._shape, self._seed = shape, seed
        self.kinds = shape.kinds

    def batch(self, step: int, crop: int) -> Batch:
        """The batch of ``step``, images cropped to ``crop`` x ``crop`` at random and mirrored half of the time."""
        rng = np.random.default_rng((self._seed, step))
        shape = self._shape
        picks = [rng.choice(m, n, replace=False) for m, n in zip(self._members, shape.rated, strict=True)]
        rated = np.concatenate(picks)
        images = [_random_crop(self._rated_pixels[i], crop, rng) for i in rated]
        odds = np.array([shape.ladder_odds.get(kind, 1.0) for kind in shape.kinds])
        kinds = tuple(str(k) for k in rng.choice(shape.kinds, shape.ladders, p=odds / odds.sum()))
        kinds += tuple(str(k) for k in rng.choice(list(ALTERATIONS), shape.alterations))
        severities = np.zeros((len(kinds), LADDER_RUNGS), np.float32)
        for row, kind in zip(severities, kinds, strict=True):
            row[1:] = _graded(rng)
            window, seed = self._window(crop, rng), int(rng.integers(2**32))
            if kind in NOISES and rng.random() < shape.faint:
                window, row[1:] = softened(window, rng), FAINT * row[1:]
            images += ladder(window, crop, _ALL[kind], row[1:], seed, stored=kind in shape.stored)
        count = shape.captioned + shape.extra_captions
        chosen = rng.choice(len(self._captions), count, replace=False)
        cut = round(crop * self._relative(self._captioned_pixels))
        captioned = [scaled(_random_crop(self._captioned_pixels[i], cut, rng), crop) for i in chosen[: shape.captioned]]
        captions = tuple(self._captions[i][rng.integers(len(self._captions[i]))] for i in chosen)
        captioned_kinds = tuple(str(k) for k in rng.choice(shape.kinds, shape.captioned))
        strong = rng.uniform(0.15, 1.0, shape.captioned) * (rng.random(shape.captioned) < shape.distorted_captions)
        images += [
            distort(p, k, float(s), rng) if s > 0 else p
            for p, k, s in zip(captioned, captioned_kinds, strong, strict=True)
        ]
        subset = np.repeat(np.arange(len(SUBSETS)), shape.rated)
        values = [measure(image[::2, ::2]) for image in images[: len(rated)]]
        measured = np.array([[v[name] for name in MEASURED] for v in values], np.float32)
        labels = BatchLabels(
            self._mos[rated], subset, measured, kinds, severities, captions, captioned_kinds, strong.astype(np.float32)
        )
        return Batch(np.stack(images), labels)

    def _window(self, crop: int, rng: np.random.Generator) -> Pixels:
        """A square cut through a clean photo, that a ladder scales to ``crop`` pixels."""
        bank = self._clean[int(rng.integers(len(self._clean)))]
        factor = 1.0 + (self._relative(bank) - 1.0) * rng.random() ** self._shape.scaling
        side = min(round(crop * factor), bank.shape[1])
        return _random_crop(bank[rng.integers(len(bank))], side, rng)

    def _relative(self, bank: Pixels) -> float:
        """How much larger than the rated photos those of ``bank`` are."""
        return float(bank.shape[1] / self._rated_pixels.shape[1])


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
