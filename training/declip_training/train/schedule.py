"""Pure functions of seed and step: which records are held out, their order, and the learning rate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .settings import Schedule

Rows = npt.NDArray[np.int64]


def held_out(ids: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Which records [N] are for validation: about ``share`` of them, by a hash of the id alone.

    A record keeps its side whatever other records are added or removed.
    """
    return np.array([_unit(i) < share for i in ids], bool)


def together(ids: Sequence[str], images: Sequence[str]) -> list[str]:
    """For each record the least id of those with the same image (equal and not empty): what shows it is on one side."""
    least: dict[str, str] = {}
    for i, image in zip(ids, images, strict=True):
        least[image] = min(i, least.get(image, i))
    return [least[image] if image else i for i, image in zip(ids, images, strict=True)]


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """``rows`` in the random order of an epoch."""
    return np.random.default_rng((seed, epoch, 0)).permutation(rows)


def crop_choice(rows: Rows, crops: int, seed: int, epoch: int) -> Rows:
    """Which of its ``crops`` each row shows in an epoch; does not depend on which other rows are asked for."""
    if not len(rows):
        return rows
    return np.random.default_rng((seed, epoch, 1)).integers(crops, size=int(rows.max()) + 1)[rows]


def learning_rate(step: int, total: int, peak: float, schedule: Schedule, warmup: int) -> float:
    """Rate of ``step`` 0..total-1: linear over ``warmup`` steps, then constant, or a half cosine towards 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _unit(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
