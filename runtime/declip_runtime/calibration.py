"""From the raw score of a graph to the value that users see.

A raw score is the softmax over an antonym pair; it ranks images but its distance from 0.5 means nothing by itself.
Where opinion scores were known, the export fitted a monotone curve from raw score to 0..1 and stored it in the
manifest. It is applied here, after the mean over views, and never changes a ranking (ties aside).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .scorer_manifest import CalibrationCurve, ScoreSpec


def apply(curve: CalibrationCurve | None, raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Map raw scores of any shape through ``curve``: piecewise linear, constant beyond its ends, NaN stays NaN.

    Without a curve the raw scores are returned as they are.
    """
    if curve is None:
        return raw
    return np.interp(raw, curve.x, curve.y).astype(np.float32)


def calibrate(specs: Sequence[ScoreSpec], raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Apply each score's own curve to its column of ``raw`` float32 [N, K]; the result has the same shape."""
    columns = [apply(spec.calibration, raw[:, k]) for k, spec in enumerate(specs)]
    return np.stack(columns, axis=1)
