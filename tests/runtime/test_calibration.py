from __future__ import annotations

import numpy as np
import pytest

from declip_runtime.calibration import apply, calibrate
from declip_runtime.scorer_manifest import CalibrationCurve, ScoreSpec

CURVE = CalibrationCurve(x=(0.4, 0.5, 0.6), y=(0.1, 0.2, 0.9), dataset="a test")


@pytest.mark.parametrize(
    ("raw", "calibrated"),
    [(0.4, 0.1), (0.45, 0.15), (0.5, 0.2), (0.55, 0.55), (0.6, 0.9), (0.0, 0.1), (1.0, 0.9)],
)
def test_the_curve_is_linear_between_its_points_and_constant_beyond(raw: float, calibrated: float) -> None:
    assert apply(CURVE, np.array([raw], np.float32)) == pytest.approx([calibrated], abs=1e-6)


def test_nan_stays_nan_and_the_type_stays_float32() -> None:
    values = apply(CURVE, np.array([np.nan, 0.5], np.float32))
    assert values.dtype == np.float32
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(0.2)


def test_ranking_survives() -> None:
    raw = np.sort(np.random.default_rng(0).uniform(0.4, 0.6, 100).astype(np.float32))
    assert (np.diff(apply(CURVE, raw)) >= 0).all()


def test_each_column_takes_its_own_curve_or_none() -> None:
    specs = (
        ScoreSpec("quality", "quality", (("Good photo.", "Bad photo."),), calibration=CURVE),
        ScoreSpec("brightness", "degree", (("Bright photo.", "Dark photo."),)),
    )
    raw = np.array([[0.5, 0.5], [0.6, 0.7]], np.float32)
    np.testing.assert_allclose(calibrate(specs, raw), [[0.2, 0.5], [0.9, 0.7]], atol=1e-6)
    assert calibrate(specs, np.empty((0, 2), np.float32)).shape == (0, 2)
