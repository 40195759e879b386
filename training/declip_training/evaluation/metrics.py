"""Agreement with people: correlations as the literature reports them, computed by SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from declip_runtime.errors import TrainingError

from .bootstrap import bootstrap, interval
from .logistic import Logistic, fit_logistic

Vector = npt.NDArray[np.floating]

MINIMUM = 3
"""Fewer photos have no correlation worth the name."""


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


@dataclass(frozen=True)
class Agreement:
    """How well scores of ``n`` photos agree with people's opinions.

    ``srcc``, ``krcc`` (tau-b) and ``plcc`` are of the raw scores, in -1..1. ``plcc_fitted`` and ``rmse`` (root mean
    square error, in units of the opinions, divided by n) come after the logistic curve ``fit``; both are NaN where
    it is None because the fit did not converge. The intervals are the central 95 % of a percentile bootstrap, None
    where none was asked for. All numbers are NaN where the scores or the opinions are constant.
    """

    n: int
    srcc: float
    krcc: float
    plcc: float
    plcc_fitted: float
    rmse: float
    fit: Logistic | None
    srcc_interval: tuple[float, float] | None = None
    krcc_interval: tuple[float, float] | None = None
    plcc_interval: tuple[float, float] | None = None


def agreement(
    predicted: Vector, target: Vector, *, references: Sequence[str] | None = None, draws: int = 1000, seed: int = 0
) -> Agreement:
    """All numbers of agreement of ``predicted`` scores with ``target`` opinions, finite, [N] each.

    ``draws`` is the number of bootstrap samples, 0 for no intervals; of whole ``references`` [N] where they are given,
    what each photo was made from. Raises TrainingError for fewer than 3 photos,
    different lengths, and values that are not finite.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise TrainingError(f"scores {x.shape} and opinions {y.shape} do not match. Give one of each for every photo.")
    if len(x) < MINIMUM:
        raise TrainingError(f"{len(x)} photos cannot show a correlation. Give at least {MINIMUM}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise TrainingError("scores or opinions are not finite. Leave out the photos that failed.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(len(x), math.nan, math.nan, math.nan, math.nan, math.nan, None)
    fit = fit_logistic(x, y)
    fitted = None if fit is None else fit(x)
    usable = fitted is not None and np.ptp(fitted) > 0
    drawn = bootstrap(x, y, references=references, draws=draws, seed=seed) if draws else None
    intervals = [None] * 3 if drawn is None else [interval(values) for values in drawn]
    return Agreement(
        n=len(x),
        srcc=srcc(x, y),
        krcc=krcc(x, y),
        plcc=plcc(x, y),
        plcc_fitted=plcc(fitted, y) if fitted is not None and usable else math.nan,
        rmse=float(np.sqrt(np.mean((fitted - y) ** 2))) if fitted is not None and usable else math.nan,
        fit=fit if usable else None,
        srcc_interval=intervals[0],
        krcc_interval=intervals[1],
        plcc_interval=intervals[2],
    )
