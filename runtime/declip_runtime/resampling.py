"""Resizing as Pillow does it, for pictures that lie on a GPU: which samples make a pixel, with which weights.

Pillow resizes along one axis after the other, rounds to 8 bits in between, and adds products of samples and integer
weights. So the same weights and the same sums give the same pixels wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import PIL
from numpy.typing import NDArray

Filter = Literal["bicubic", "bilinear"]

_ONE = 1 << 22
"""The weight 1."""

_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])

_SHARPNESS = -0.5  # Pillow's parameter of the bicubic filter


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a = _SHARPNESS
    x = np.abs(x)
    near: NDArray[np.float64] = ((a + 2) * x - (a + 3)) * x * x + 1
    far: NDArray[np.float64] = (((x - 5) * x + 8) * x - 4) * a
    weights: NDArray[np.float64] = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0.0)
    return weights


_FILTERS: dict[Filter, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}


@dataclass(frozen=True)
class Axis:
    """One axis of a resizing: of ``length`` samples those in a box become ``resized``, of which some are wanted.

    Lengths in samples, all at least 1; the box lies within the picture, and what is wanted within the result. Samples
    beside the box count where the filter reaches them, as in Pillow.
    """

    length: int
    box_start: int
    box_length: int
    resized: int
    first: int
    count: int

    @property
    def shrinks_by(self) -> int:
        """How many samples fewer the result has than the picture: what Pillow decides by."""
        return self.length - self.resized


def rows_first(across: Axis, down: Axis) -> bool:
    """Whether rows are resized before columns: where that is much more work, Pillow from version 13 on does not.

    12.2 and its followers do not in pictures more than a hundred times as high as wide that become lower; older ones
    always do.
    """
    if _PILLOW >= (13, 0):
        return not down.shrinks_by > max(0, 2 * across.shrinks_by)
    return not (_PILLOW >= (12, 2) and down.length > 100 * across.length and down.shrinks_by > 0)


@lru_cache(maxsize=256)  # the photos of one camera have one size
def taps(axis: Axis, kind: Filter) -> NDArray[np.int32]:
    """Which samples make each position that is wanted: int32 [count, 2 + W], read only.

    In each row the first sample, how many there are (1 to W), and their weights in 1/2^22, which add up to 1 but for
    rounding. No row begins or ends before the row above.
    """
    function, reach = _FILTERS[kind]
    step = axis.box_length / axis.resized
    spread = max(step, 1.0)  # where it shrinks, all samples count
    centres = axis.box_start + (np.arange(axis.first, axis.first + axis.count) + 0.5) * step
    starts = np.maximum((centres - reach * spread + 0.5).astype(np.int64), 0)
    ends = np.minimum((centres + reach * spread + 0.5).astype(np.int64), axis.length)
    offsets = np.arange(int((ends - starts).max()))
    weights = function((starts[:, None] + offsets - centres[:, None] + 0.5) * (1.0 / spread))
    weights[offsets >= (ends - starts)[:, None]] = 0.0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # one after the other: the sum of floats depends on their order
    rows = np.empty((axis.count, 2 + len(offsets)), np.int32)
    rows[:, 0], rows[:, 1] = starts, ends - starts
    rows[:, 2:] = np.trunc(weights * _ONE + np.copysign(0.5, weights))
    rows.flags.writeable = False
    return rows
