"""Agreement with people: correlations as the literature reports them, computed by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Vector = npt.NDArray[np.floating]


def srcc(predicted: Vector, target: Vector) -> float:
    """Spearman's rank correlation, ties averaged, in -1..1."""
    return float(stats.spearmanr(predicted, target).statistic)


def plcc(predicted: Vector, target: Vector) -> float:
    """Pearson's linear correlation of the raw values (no logistic fit first), in -1..1."""
    return float(stats.pearsonr(predicted, target).statistic)


def krcc(predicted: Vector, target: Vector) -> float:
    """Kendall's tau-b, in -1..1."""
    return float(stats.kendalltau(predicted, target).statistic)


def by_subset(predicted: Vector, target: Vector, subsets: Sequence[str]) -> dict[str, float]:
    """SRCC of each subset, their ``mean`` and the ``pooled`` SRCC of all.

    Pooling flatters where subsets differ in level: there the subset alone predicts the score.
    """
    labels = np.asarray(subsets)
    each = {str(name): srcc(predicted[labels == name], target[labels == name]) for name in np.unique(labels)}
    return {**each, "mean": float(np.mean(list(each.values()))), "pooled": srcc(predicted, target)}
