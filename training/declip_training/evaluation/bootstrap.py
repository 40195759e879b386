"""How far a correlation would move with other photos of the same kind: percentile bootstrap over photos."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Draws = npt.NDArray[np.float64]

_ELEMENTS_AT_ONCE = 2_000_000
"""Drawn photos held in memory at once; some ten arrays of that length are alive."""


def bootstrap(
    predicted: npt.NDArray[np.floating], target: npt.NDArray[np.floating], *, draws: int = 1000, seed: int = 0
) -> tuple[Draws, Draws]:
    """SRCC and PLCC, float64 [draws] each, of photos drawn with replacement; NaN where a draw is constant.

    ``predicted`` and ``target`` are finite, [N]. Equal to SciPy's correlations of the same draws.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    x_values, x_codes = np.unique(x, return_inverse=True)
    y_values, y_codes = np.unique(y, return_inverse=True)
    rng = np.random.default_rng(seed)
    srcc, plcc = np.empty(draws), np.empty(draws)
    step = max(1, _ELEMENTS_AT_ONCE // len(x))
    for start in range(0, draws, step):
        rows = slice(start, min(start + step, draws))
        drawn = rng.integers(0, len(x), (rows.stop - rows.start, len(x)))
        plcc[rows] = _pearson(x[drawn], y[drawn])
        srcc[rows] = _pearson(_ranks(x_codes[drawn], len(x_values)), _ranks(y_codes[drawn], len(y_values)))
    return srcc, plcc


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
