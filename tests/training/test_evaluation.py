"""Metrics against SciPy, judging ladders, calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from skimage import data, metrics

from declip_runtime.errors import TrainingError
from declip_training.calibration import fit_calibration
from declip_training.evaluation import ladders
from declip_training.evaluation.metrics import by_subset, krcc, plcc, srcc

RNG = np.random.default_rng(0)


def test_by_subset_shows_what_pooling_hides() -> None:
    subsets = ["a"] * 50 + ["b"] * 50
    target = np.concatenate([RNG.uniform(0, 0.4, 50), RNG.uniform(0.6, 1.0, 50)])
    predicted = np.repeat([0.0, 1.0], 50) + 0.01 * RNG.standard_normal(100)
    result = by_subset(predicted, target, subsets)
    assert result["pooled"] > 0.7 > 0.4 > abs(result["mean"])
    assert result["a"] == pytest.approx(stats.spearmanr(predicted[:50], target[:50]).statistic)


def test_correlations_know_a_monotone_curve_from_a_line() -> None:
    x = np.linspace(0, 1, 50)
    assert srcc(np.exp(5 * x), x) == pytest.approx(1)
    assert krcc(np.exp(5 * x), x) == pytest.approx(1)
    assert plcc(np.exp(5 * x), x) < 0.95


@pytest.mark.parametrize("name", ladders.LADDERS)
def test_ladders_get_steadily_worse(name: str) -> None:
    clean = data.astronaut()[100:356, 100:356]
    similarity = [metrics.peak_signal_noise_ratio(clean, rung(clean)) for rung in ladders.LADDERS[name]]
    assert similarity == sorted(similarity, reverse=True)


def test_srgb_curve_round_trips() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(ladders.to_srgb(ladders.to_linear(every)), every)


def test_judge_tells_a_perfect_scorer_from_a_blind_one(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()[100:228, 100:228]).save(path)
    clean = np.asarray(Image.open(path)).astype(float)
    perfect = ladders.judge(lambda images: np.array([-np.mean((i - clean) ** 2) for i in images]), [path])
    assert perfect["mean"] == pytest.approx(1.0)
    reversed_ = ladders.judge(lambda images: np.array([np.mean((i - clean) ** 2) for i in images]), [path])
    assert reversed_["noise"] == pytest.approx(-1.0)


def test_calibration_is_strictly_monotone_and_reduces_error() -> None:
    raw = RNG.beta(2, 2, 400)
    mos = np.clip(0.2 + 0.6 * raw**3 + 0.05 * RNG.standard_normal(400), 0, 1)
    curve = fit_calibration(raw, mos, "synthetic")
    grid = np.interp(np.linspace(0, 1, 500), curve.x, curve.y)
    assert (np.diff(grid) > 0).all()
    assert 0 <= grid[0] < grid[-1] <= 1
    calibrated = np.interp(raw, curve.x, curve.y)
    assert np.mean((calibrated - mos) ** 2) < 0.3 * np.mean((raw - mos) ** 2)
    assert srcc(calibrated, raw) == pytest.approx(1.0)


def test_calibration_refuses_what_it_cannot_fit() -> None:
    raw = RNG.uniform(0, 1, 100)
    with pytest.raises(TrainingError, match="Swap the antonym"):
        fit_calibration(raw, 1 - raw, "reversed")
    with pytest.raises(TrainingError, match="at least 50"):
        fit_calibration(raw[:10], raw[:10], "few")
