"""BIQ2021: 12,000 real photos with mean opinion scores (github.com/nisarahmedrana/BIQ2021).

The folder holds ``Images/``, ``Train (Images and MOS).csv`` (10,000) and ``Test (Images and MOS).csv`` (2,000).
Images are free for research and benchmarking. Two traps are handled here: about 190 Test photos have a near-duplicate
in Train, and subsets differ so much in quality that a pooled correlation flatters.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_runtime.errors import TrainingError

from .pixel_bank import decoding

SUBSETS = ("ss01", "ss02", "ss03")
DUPLICATE_CORRELATION = 0.97


@dataclass(frozen=True)
class Rated:
    """One photo with its mean opinion score in 0..1 (higher is better) and the subset it belongs to."""

    path: Path
    mos: float
    subset: str


def read_split(folder: Path, split: str) -> list[Rated]:
    """Photos of ``split`` ("Train" or "Test") in the order of the official CSV.

    Raises TrainingError that names the missing file.
    """
    table = folder / f"{split} (Images and MOS).csv"
    if not table.is_file():
        raise TrainingError(f"BIQ2021 is incomplete: {table} is missing. Clone github.com/nisarahmedrana/BIQ2021.")
    on_disk = {p.name.lower(): p for p in (folder / "Images").glob("*")}
    photos = []
    with table.open(newline="", encoding="utf-8-sig") as stream:
        for row in csv.DictReader(stream):
            name = row["Image Name"].strip()
            path = on_disk.get(name.lower())  # one file of the official release ends in .JPG
            if path is None:
                raise TrainingError(f"BIQ2021 is incomplete: Images/{name} is missing. Clone the repository again.")
            photos.append(Rated(path, _mos(row["MOS"], name, table), name[:4]))
    return photos


def _mos(text: str, name: str, table: Path) -> float:
    try:
        mos = float(text)
    except (TypeError, ValueError):
        mos = math.nan
    if not 0 <= mos <= 1:
        raise TrainingError(f"{table} gives {name} the MOS {text!r}, which is no number in 0..1. Clone BIQ2021 again.")
    return mos


def thumbnails(paths: Sequence[Path], side: int = 32) -> npt.NDArray[np.float32]:
    """Zero-mean, unit-norm grey thumbnails, float32 [N, side * side]; their dot product is a correlation."""
    rows = np.empty((len(paths), side * side), np.float32)
    for row, path in zip(rows, paths, strict=True):
        with decoding(path), Image.open(path) as image:
            image.draft("L", (2 * side, 2 * side))
            row[:] = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32).ravel()
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def resembling(
    queries: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], threshold: float = DUPLICATE_CORRELATION
) -> npt.NDArray[np.bool_]:
    """Bool [N]: which query thumbnails correlate above ``threshold`` with any thumbnail of the gallery."""
    found: npt.NDArray[np.bool_] = (queries @ gallery.T).max(axis=1) > threshold
    return found


@dataclass(frozen=True)
class Splits:
    """What may be trained on, what choices are made on, and what only judges.

    ``fit`` and ``validation`` come from the official Train and resemble nothing in Test; ``test`` is the official Test
    whole, ``test_unique`` marks its photos without a near-duplicate in the official Train.
    """

    fit: tuple[Rated, ...]
    validation: tuple[Rated, ...]
    test: tuple[Rated, ...]
    test_unique: npt.NDArray[np.bool_]


def read_splits(folder: Path, *, validation_share: float = 0.1, seed: int = 2021) -> Splits:
    """Read both tables, drop near-duplicates, and hold out a validation share of each subset of Train."""
    train, test = read_split(folder, "Train"), read_split(folder, "Test")
    train_thumbs = thumbnails([p.path for p in train])
    test_thumbs = thumbnails([p.path for p in test])
    candidates = np.flatnonzero(~resembling(train_thumbs, test_thumbs))
    rng = np.random.default_rng(seed)
    held = np.array(
        [
            index
            for subset in SUBSETS
            for members in [[i for i in candidates if train[i].subset == subset]]
            for index in rng.permutation(members)[: int(validation_share * len(members))]
        ],
        dtype=np.int64,
    )
    rest = np.setdiff1d(candidates, held)
    rest = rest[~resembling(train_thumbs[rest], train_thumbs[held])]
    return Splits(
        fit=tuple(train[i] for i in rest),
        validation=tuple(train[i] for i in held),
        test=tuple(test),
        test_unique=~resembling(test_thumbs, train_thumbs),
    )
