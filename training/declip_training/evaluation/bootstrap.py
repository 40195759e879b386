"""How far a correlation would move with other photos of the same kind: percentile bootstrap over photos."""

from __future__ import annotations

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
    predicted: npt.NDArray[np.floating], target: npt.NDArray[np.floating], *, draws: int = 1000, seed: int = 0
) -> Bootstrap:
    """SRCC, KRCC (tau-b) and PLCC of ``draws`` draws of as many photos as there are.

    ``predicted`` and ``target`` are finite, [N]. Equal to SciPy's correlations of the same draws. The draws follow
    from ``seed``, N and ``draws`` alone, so engines that are compared on the same photos meet the same draws.
    """
    x_values, x_codes = np.unique(predicted, return_inverse=True)
    y_values, y_codes = np.unique(target, return_inverse=True)
    x, y = _standard(predicted), _standard(target)
    rng = np.random.default_rng(seed)
    found = Bootstrap(np.empty(draws), np.empty(draws), np.empty(draws))
    step = max(1, _ELEMENTS_AT_ONCE // len(x))
    for start in range(0, draws, step):
        rows = slice(start, min(start + step, draws))
        drawn = rng.integers(0, len(x), (rows.stop - rows.start, len(x)))
        x_drawn, y_drawn = x_codes[drawn], y_codes[drawn]
        found.srcc[rows] = _pearson(_ranks(x_drawn, len(x_values)), _ranks(y_drawn, len(y_values)))
        found.krcc[rows] = [stats.kendalltau(a, b).statistic for a, b in zip(x_drawn, y_drawn, strict=True)]
        found.plcc[rows] = _pearson(x[drawn], y[drawn])
        constant = (np.ptp(x_drawn, axis=1) == 0) | (np.ptp(y_drawn, axis=1) == 0)
        found.plcc[rows][constant] = np.nan  # the mean of equal numbers may miss them by a rounding
    return found


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
