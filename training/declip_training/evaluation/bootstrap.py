"""How far a correlation would move with other photos of the same kind: percentile bootstrap over photos.

Photos made from one reference are no independent draws: then whole references are drawn (Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Draws = npt.NDArray[np.float64]

_ELEMENTS_AT_ONCE = 2_000_000
"""Drawn photos held in memory at once; some ten arrays of that length are alive."""


class Bootstrap(NamedTuple):
    """Correlations of photos drawn with replacement, float64 [draws] each; NaN where a draw is constant."""

    srcc: Draws
    krcc: Draws
    plcc: Draws


def bootstrap(
    predicted: npt.NDArray[np.floating],
    target: npt.NDArray[np.floating],
    *,
    references: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """SRCC, KRCC (tau-b) and PLCC of ``draws`` draws of as many photos, or as many ``references``, as there are.

    ``predicted`` and ``target`` are finite, [N]; ``references`` [N], where given, say which photos are drawn together.
    Equal to SciPy's correlations of the same draws. The draws follow from ``seed``, N, ``references`` and ``draws``
    alone, so engines that are compared on the same photos meet the same draws.
    """
    x_values, x_codes = np.unique(predicted, return_inverse=True)
    y_values, y_codes = np.unique(target, return_inverse=True)
    x, y = _standard(predicted), _standard(target)
    rng = np.random.default_rng(seed)
    found = Bootstrap(np.empty(draws), np.empty(draws), np.empty(draws))
    start = 0
    for drawn in _photos(rng, len(x), draws) if references is None else _of_references(rng, references, draws):
        rows = slice(start, start + len(drawn))
        start = rows.stop
        x_drawn, y_drawn = x_codes[drawn], y_codes[drawn]
        found.srcc[rows] = _pearson(_ranks(x_drawn, len(x_values)), _ranks(y_drawn, len(y_values)))
        found.krcc[rows] = [stats.kendalltau(a, b).statistic for a, b in zip(x_drawn, y_drawn, strict=True)]
        found.plcc[rows] = _pearson(x[drawn], y[drawn])
        constant = (np.ptp(x_drawn, axis=1) == 0) | (np.ptp(y_drawn, axis=1) == 0)
        found.plcc[rows][constant] = np.nan  # the mean of equal numbers may miss them by a rounding
    return found


def _photos(rng: np.random.Generator, photos: int, draws: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of drawn places, [B, N] each."""
    step = max(1, _ELEMENTS_AT_ONCE // photos)
    for start in range(0, draws, step):
        yield rng.integers(0, photos, (min(step, draws - start), photos))


def _of_references(rng: np.random.Generator, references: Sequence[str], draws: int) -> Iterator[npt.NDArray[np.int64]]:
    """The same with all photos of each drawn reference; one row each, because their lengths differ."""
    names, codes = np.unique(np.asarray(references), return_inverse=True)
    places = [np.nonzero(codes == code)[0] for code in range(len(names))]
    for _ in range(draws):
        yield np.concatenate([places[i] for i in rng.integers(0, len(names), len(names))])[None]


def _standard(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The values on a scale on which no square overflows or vanishes; their correlations are the same."""
    x = np.asarray(values, np.float64)
    x = x / np.abs(x).max(initial=np.finfo(np.float64).tiny)
    x = x - x.mean()
    standard: npt.NDArray[np.float64] = x / np.abs(x).max(initial=np.finfo(np.float64).tiny)
    return standard


def interval(draws: Draws, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of the draws that are numbers; NaN, NaN where none is."""
    numbers = draws[np.isfinite(draws)]
    if not len(numbers):
        return float("nan"), float("nan")
    low, high = np.quantile(numbers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ranks(codes: npt.NDArray[np.intp], kinds: int) -> npt.NDArray[np.float64]:
    """Ranks [B, N], ties averaged, of rows of sorted values' numbers: counting replaces sorting."""
    rows = len(codes)
    offsets = kinds * np.arange(rows)[:, None]
    counts = np.bincount((codes + offsets).ravel(), minlength=rows * kinds).reshape(rows, kinds)
    middles = np.cumsum(counts, axis=1) - (counts - 1) / 2
    ranks: npt.NDArray[np.float64] = np.take_along_axis(middles, codes, axis=1)
    return ranks


def _pearson(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pearson's correlation of each row of two arrays [B, N]."""
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    products = (x * y).sum(axis=1)
    correlation: npt.NDArray[np.float64] = np.divide(products, lengths, out=np.full(len(x), np.nan), where=lengths > 0)
    return correlation
