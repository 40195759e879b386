"""Fit of the monotone map from raw scores to mean opinion scores (runtime counterpart: declip_runtime.calibration)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from declip_runtime.errors import TrainingError
from declip_runtime.scorer_manifest import CalibrationCurve

STRICTNESS = 0.02
"""Least rise of the curve over the whole 0..1 of the raw score: flat parts would turn different scores into ties."""


def fit_calibration(
    raw: npt.NDArray[np.floating], mos: npt.NDArray[np.floating], dataset: str, *, knots: int = 12
) -> CalibrationCurve:
    """Isotonic regression of ``mos`` (0..1) on ``raw`` (0..1), read off at quantiles and made strictly increasing.

    Raises TrainingError for fewer than 50 photos or a raw score that falls where people's opinion rises.
    """
    if len(raw) < 50:
        raise TrainingError(f"a calibration needs at least 50 rated photos, {len(raw)} were given.")
    if np.corrcoef(raw, mos)[0, 1] <= 0:
        raise TrainingError("the score falls where opinions rise. Swap the antonym prompts before calibrating.")
    order = np.argsort(raw, kind="stable")
    fitted = np.asarray(isotonic_regression(np.asarray(mos, float)[order]).x)
    groups = np.array_split(np.arange(len(raw)), knots)
    x = np.array([raw[order][g].mean() for g in groups])
    y = np.array([fitted[g].mean() for g in groups])
    first, last = (y[1] - y[0]) / max(x[1] - x[0], 1e-6), (y[-1] - y[-2]) / max(x[-1] - x[-2], 1e-6)
    # beyond the outer quantiles the curve goes on with its last slope, as far as 0..1 allows
    x = np.concatenate([[0.0], x, [1.0]])
    y = np.concatenate([[max(0.0, y[0] - first * x[1])], y, [min(1.0, y[-1] + last * (1 - x[-2]))]])
    y = (1 - STRICTNESS) * np.clip(y, 0, 1) + STRICTNESS * x
    keep = np.concatenate([[True], np.diff(x) > 1e-6])
    return CalibrationCurve(tuple(map(float, x[keep])), tuple(map(float, y[keep])), dataset)
