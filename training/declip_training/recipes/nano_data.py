"""The public data of the bundled engine: where it lies, how it is split, and its decoded banks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_training.data.biq2021 import Splits, read_splits
from declip_training.data.flickr8k import Captioned, read_flickr8k
from declip_training.data.pixel_bank import build_pixel_bank

SIDE = 256
CAPTIONED_SIDE = 224  # the public copy of Flickr8k has this size; scaling it up would teach blur


@dataclass(frozen=True)
class Sources:
    """Clones of public repositories below one folder."""

    root: Path

    @property
    def biq2021(self) -> Path:
        """Opinions on photos: github.com/nisarahmedrana/BIQ2021 as ``BIQ2021``."""
        return self.root / "BIQ2021"

    @property
    def clean(self) -> list[Path]:
        """Photos that training ladders start from: CID22 training, BSDS500 train and val, ImageNet samples.

        Raises TrainingError naming the repositories where too few are found.
        """
        return self._photos(
            "codec-corpus/CID22/CID22-512/training/*.png",
            "BSDS500/BSDS500/data/images/train/*.jpg",
            "BSDS500/BSDS500/data/images/val/*.jpg",
            "imagenet-sample/*.JPEG",
            least=1000,
        )

    @property
    def judging(self) -> list[Path]:
        """81 photos that no training step sees, for judging: CID22 validation and each fifth of BSDS500 test."""
        sharp = self._photos("codec-corpus/CID22/CID22-512/validation/*.png", least=41)
        return [*sharp, *self._photos("BSDS500/BSDS500/data/images/test/*.jpg", least=200)[::5]]

    def captioned(self) -> list[Captioned]:
        """Flickr8k photos (github.com/RlNZLER/Image-Text-Matching at ae2cf6e) and their official captions."""
        folder = self.root / "flickr8k"
        return read_flickr8k(folder / "data/images", folder / "Flickr8k_text/Flickr8k.token.txt")

    def _photos(self, *patterns: str, least: int) -> list[Path]:
        found = sorted(path for pattern in patterns for path in self.root.glob(pattern))
        if len(found) < least:
            raise TrainingError(
                f"only {len(found)} of at least {least} photos match {', '.join(patterns)} below {self.root}. Clone "
                "imazen/codec-corpus as codec-corpus, BIDS/BSDS500 as BSDS500 and "
                "EliSchwartz/imagenet-sample-images as imagenet-sample."
            )
        return found


@dataclass(frozen=True)
class Banks:
    """Splits, captions and decoded photos uint8 [N, S, S, 3], rows in the order of the lists."""

    splits: Splits
    captioned: list[Captioned]
    fit: npt.NDArray[np.uint8]
    validation: npt.NDArray[np.uint8]
    clean: npt.NDArray[np.uint8]
    captioned_pixels: npt.NDArray[np.uint8]


def prepare(sources: Sources, cache: Path) -> Banks:
    """Read every table and decode every photo once; a second call opens what the first left in ``cache``."""
    splits, captioned = read_splits(sources.biq2021), sources.captioned()
    return Banks(
        splits,
        captioned,
        fit=build_pixel_bank([p.path for p in splits.fit], SIDE, cache),
        validation=build_pixel_bank([p.path for p in splits.validation], SIDE, cache),
        clean=build_pixel_bank(sources.clean, SIDE, cache),
        captioned_pixels=build_pixel_bank([p.path for p in captioned], CAPTIONED_SIDE, cache),
    )
