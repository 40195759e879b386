"""The public data of the bundled engine: where it lies, how it is split, and its decoded banks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_runtime.errors import TrainingError
from declip_training.data.biq2021 import Splits, read_splits
from declip_training.data.flickr8k import Captioned, read_flickr8k, read_split
from declip_training.data.pixel_bank import build_pixel_bank, decoding, photos_sha256

SIDE = 384
LADDER_SIDES = (512, 320)
CLEAN_MOS = 0.65
FLICKR8K_TEST = 1000
CAPTIONED_SIDE = 224  # the public copy of Flickr8k has this size


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
    def validation(self) -> list[Path]:
        """Kodak's 24 photos, for ladders that choices are made by."""
        return self._photos("codec-corpus/kodak/*.png", least=24)

    @property
    def judging(self) -> list[Path]:
        """81 photos that no training step sees, for judging: CID22 validation and each fifth of BSDS500 test."""
        sharp = self._photos("codec-corpus/CID22/CID22-512/validation/*.png", least=41)
        return [*sharp, *self._photos("BSDS500/BSDS500/data/images/test/*.jpg", least=200)[::5]]

    @property
    def polyu(self) -> Path:
        """Camera noise, for judging: github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset as ``polyu``."""
        return self.root / "polyu"

    def captioned(self) -> list[Captioned]:
        """Flickr8k photos (github.com/RlNZLER/Image-Text-Matching at ae2cf6e) with official captions, less Test."""
        return self._flickr8k(test=False)

    def captioned_test(self) -> list[Captioned]:
        """Flickr8k's official Test: 1,000 photos, for judging. Raises TrainingError where one is missing."""
        photos = self._flickr8k(test=True)
        if len(photos) < FLICKR8K_TEST:
            raise TrainingError(
                f"only {len(photos)} of the {FLICKR8K_TEST:,} photos of Flickr8k's Test are below {self.root}/flickr8k."
                " Take data/images of RlNZLER/Image-Text-Matching at ae2cf6e whole."
            )
        return photos

    def _flickr8k(self, *, test: bool) -> list[Captioned]:
        folder = self.root / "flickr8k"
        names = read_split(folder / "Flickr8k_text/Flickr_8k.testImages.txt")
        photos = read_flickr8k(folder / "data/images", folder / "Flickr8k_text/Flickr8k.token.txt")
        return [photo for photo in photos if (photo.path.name in names) == test]

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
    """Splits, captions and decoded photos uint8 [N, S, S, 3], rows in the order of the lists.

    ``clean`` are banks that ladders start from, at sides of their own.
    """

    splits: Splits
    captioned: list[Captioned]
    captioned_test: list[Captioned]
    fit: npt.NDArray[np.uint8]
    validation: npt.NDArray[np.uint8]
    clean: tuple[npt.NDArray[np.uint8], ...]
    captioned_pixels: npt.NDArray[np.uint8]
    captioned_test_pixels: npt.NDArray[np.uint8]


def prepare(sources: Sources, cache: Path) -> Banks:
    """Read every table and decode every photo once; a second call opens what the first left in ``cache``."""
    splits, captioned, judging = read_splits(sources.biq2021), sources.captioned(), sources.captioned_test()
    return Banks(
        splits,
        captioned,
        judging,
        fit=build_pixel_bank([p.path for p in splits.fit], SIDE, cache),
        validation=build_pixel_bank([p.path for p in splits.validation], SIDE, cache),
        clean=tuple(build_pixel_bank(paths, side, cache) for side, paths in _ladder_photos(sources, splits)),
        captioned_pixels=build_pixel_bank([p.path for p in captioned], CAPTIONED_SIDE, cache),
        captioned_test_pixels=build_pixel_bank([p.path for p in judging], CAPTIONED_SIDE, cache),
    )


def fingerprints(sources: Sources, banks: Banks) -> dict[str, dict[str, int | str]]:
    """Of each part of the data that makes an engine: its photos' number, and SHA-256 over their names and sizes."""
    parts = {
        "BIQ2021 Train, fit": [p.path for p in banks.splits.fit],
        "BIQ2021 Train, validation": [p.path for p in banks.splits.validation],
        "clean photos": sources.clean,
        "Kodak": sources.validation,
        "Flickr8k without Test": [p.path for p in banks.captioned],
    }
    return {name: {"photos": len(paths), "sha256": photos_sha256(paths)} for name, paths in parts.items()}


def _ladder_photos(sources: Sources, splits: Splits) -> list[tuple[int, list[Path]]]:
    """(side, photos) of each bank that ladders start from, none larger than its photos' files."""
    photos: list[tuple[int, list[Path]]] = [(LADDER_SIDES[0], [p.path for p in splits.fit if p.mos >= CLEAN_MOS])]
    smaller: dict[int, list[Path]] = {side: [] for side in LADDER_SIDES}
    for path in sources.clean:
        with decoding(path), Image.open(path) as image:
            fitting = [side for side in LADDER_SIDES if side <= min(image.size)]
        if fitting:
            smaller[fitting[0]].append(path)
    return [*photos, *smaller.items()]
