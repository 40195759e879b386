"""Numbers of agreement against SciPy's, computed another way."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import optimize, stats

from declip_runtime.errors import TrainingError
from declip_training.evaluation.bootstrap import bootstrap, interval
from declip_training.evaluation.logistic import Logistic, fit_logistic
from declip_training.evaluation.metrics import agreement

RNG = np.random.default_rng(7)


def scores(n: int, noise: float = 0.1, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores around 0.52 and opinions 1..5 on an S-shaped curve of them."""
    x = RNG.normal(0.52, 0.01, n)
    return x, 1 + 4 / (1 + np.exp(-sign * (x - 0.515) / 0.004)) + RNG.normal(0, noise, n)


@pytest.mark.parametrize("n", [5, 40, 700])
def test_correlations_are_scipys_ties_included(n: int) -> None:
    x, y = scores(n, 0.5)
    x, y = x.round(3), y.round(1)
    found = agreement(x, y, draws=0)
    assert found.n == n
    assert found.srcc == stats.spearmanr(x, y).statistic
    assert found.krcc == stats.kendalltau(x, y).statistic
    assert found.plcc == stats.pearsonr(x, y).statistic
    assert found.srcc_interval is found.krcc_interval is found.plcc_interval is None


def test_the_fit_is_the_least_squares_one() -> None:
    x, y = scores(500)

    def vqeg(s: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
        return (b1 - b2) / (1 + np.exp(-(s - b3) / abs(b4))) + b2

    theirs, _ = optimize.curve_fit(vqeg, x, y, p0=(5, 1, 0.515, 0.004), maxfev=50_000)
    found = agreement(x, y, draws=0)
    assert found.fit is not None
    assert (found.fit.high, found.fit.low, found.fit.centre) == pytest.approx(theirs[:3], rel=1e-4)
    assert found.fit.width == pytest.approx(abs(theirs[3]), rel=1e-4)
    assert found.plcc_fitted == pytest.approx(stats.pearsonr(vqeg(x, *theirs), y).statistic, abs=1e-7)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((vqeg(x, *theirs) - y) ** 2)), rel=1e-6)
    assert found.rmse == pytest.approx(0.1, rel=0.1)  # the noise that was put in
    assert found.plcc < found.plcc_fitted
    assert not found.fit.falls


def test_the_scale_of_scores_changes_no_fitted_number() -> None:
    x, y = scores(300)
    one, other = agreement(x, y, draws=0), agreement(1e6 * x - 3, y, draws=0)
    assert other.plcc_fitted == pytest.approx(one.plcc_fitted, abs=1e-6)
    assert other.rmse == pytest.approx(one.rmse, rel=1e-5)


def test_a_falling_curve_is_called_one() -> None:
    x, y = scores(300, sign=-1.0)
    found = agreement(x, y, draws=0)
    assert found.plcc < -0.9
    assert found.fit is not None
    assert found.fit.falls
    assert found.plcc_fitted > 0.9  # which is why it has to be said


def test_a_few_scores_far_out_do_not_hide_the_curve() -> None:
    """A softmax that is nearly always near zero, and one photo where it is not."""
    rng = np.random.default_rng(3)
    y = rng.uniform(1, 5, 500)
    x = 5e-5 * np.exp(0.8 * (y - 3) + rng.normal(0, 0.3, 500))
    x[0], y[0] = 0.9, 1.2
    found = agreement(x, y, draws=0)
    assert found.srcc > 0.9
    assert found.plcc_fitted > 0.85
    assert found.fit is not None
    assert not found.fit.falls


def test_scores_turned_round_are_fitted_as_well() -> None:
    """The start follows the direction; from the customary one every fifth of these ends in a worse curve."""
    rng = np.random.default_rng(0)
    worse = 0
    for _ in range(120):
        x = rng.normal(size=18)
        y = 1 + 4 / (1 + np.exp(-(x - 1) / 0.13)) + rng.normal(0, 2.5, 18)
        one, other = fit_logistic(x, y), fit_logistic(-x, y)
        if one is None or other is None:
            worse += one is not other
        else:
            worse += np.square(other(-x) - y).sum() != pytest.approx(np.square(one(x) - y).sum(), rel=1e-3)
    assert worse <= 3  # rounding may lead a fit elsewhere


def test_a_fit_that_does_not_converge_is_told_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*_: object, **__: object) -> None:
        raise RuntimeError("Optimal parameters not found: Number of calls to function has reached maxfev = 20000.")

    monkeypatch.setattr(optimize, "curve_fit", gives_up)
    x, y = scores(50)
    found = agreement(x, y, draws=10)
    assert found.fit is None
    assert np.isnan([found.plcc_fitted, found.rmse]).all()
    assert found.srcc == stats.spearmanr(x, y).statistic
    assert found.srcc_interval is not None


def test_three_points_have_no_fit_with_four_parameters() -> None:
    assert fit_logistic(np.array([1.0, 2, 3]), np.array([1.0, 2, 4])) is None


def test_far_scores_do_not_overflow() -> None:
    curve = Logistic(5.0, 1.0, 0.0, 1e-9)
    assert curve(np.array([-1e12, 1e12])).tolist() == [1.0, 5.0]


def test_the_bootstrap_is_scipys_on_the_same_draws() -> None:
    x, y = scores(60, 1.0)
    x = x.round(2)  # many ties
    srcc, krcc, plcc = bootstrap(x, y, draws=25, seed=3)
    drawn = np.random.default_rng(3).integers(0, 60, (25, 60))
    assert srcc == pytest.approx([stats.spearmanr(x[d], y[d]).statistic for d in drawn], abs=1e-12)
    assert krcc == pytest.approx([stats.kendalltau(x[d], y[d]).statistic for d in drawn], abs=1e-12)
    assert plcc == pytest.approx([stats.pearsonr(x[d], y[d]).statistic for d in drawn], abs=1e-12)


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = scores(50, 1.0)
    whole = bootstrap(x, y, draws=30, seed=1)
    monkeypatch.setattr("declip_training.evaluation.bootstrap._ELEMENTS_AT_ONCE", 170)
    for one, other in zip(whole, bootstrap(x, y, draws=30, seed=1), strict=True):
        assert np.allclose(one, other, atol=1e-14)


def test_whole_references_are_drawn() -> None:
    """Equal to SciPy on draws made by other means; what other references give is covered, unlike by drawing photos."""
    x, y = scores(60, 1.0)
    references = [f"I{i % 7}" for i in range(60)]
    found = bootstrap(x, y, references=references, draws=5, seed=3)
    rng = np.random.default_rng(3)
    for draw in range(5):
        drawn = [i for code in rng.integers(0, 7, 7) for i in range(60) if references[i] == f"I{code}"]
        assert found.srcc[draw] == pytest.approx(stats.spearmanr(x[drawn], y[drawn]).statistic, abs=1e-12)
        assert found.krcc[draw] == pytest.approx(stats.kendalltau(x[drawn], y[drawn]).statistic, abs=1e-12)
        assert found.plcc[draw] == pytest.approx(stats.pearsonr(x[drawn], y[drawn]).statistic, abs=1e-12)

    def world(seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rng = np.random.default_rng(seed)
        level = np.repeat(rng.normal(0, 1, 25), 40)
        opinion = rng.normal(0, 1, 1000)
        return opinion + level, opinion, [str(i // 40) for i in range(1000)]

    worlds = [world(seed) for seed in range(40)]
    expected = np.mean([stats.spearmanr(a, b).statistic for a, b, _ in worlds])
    covered = {True: 0, False: 0}
    for a, b, of in worlds:
        for whole in covered:
            low, high = interval(bootstrap(a, b, references=of if whole else None, draws=200).srcc)
            covered[whole] += low < expected < high
    assert covered[True] >= 34 > covered[False] + 8


def test_intervals_agree_with_scipys_bootstrap() -> None:
    x, y = scores(150, 1.5)
    found = agreement(x, y, draws=4000)
    for value, interval_, correlation in (
        (found.srcc, found.srcc_interval, stats.spearmanr),
        (found.krcc, found.krcc_interval, stats.kendalltau),
        (found.plcc, found.plcc_interval, stats.pearsonr),
    ):
        theirs = stats.bootstrap(
            (x, y), lambda a, b, of=correlation: of(a, b).statistic, paired=True, vectorized=False,
            n_resamples=2000, method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert interval_ == pytest.approx((theirs.low, theirs.high), abs=0.012)
        assert interval_ is not None
        assert interval_[0] < value < interval_[1]
    assert agreement(x, y, draws=4000) == found  # seeded


def test_engines_meet_the_same_draws() -> None:
    """So that two engines' intervals differ by the engines alone."""
    x, y = scores(40, 1.0)
    one, other = bootstrap(x, y, draws=30), bootstrap(2 * x + 1, y, draws=30)
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-14, 1e160, 1e300])
def test_very_small_and_very_large_scores_have_the_same_numbers(scale: float, recwarn: pytest.WarningsRecorder) -> None:
    """A softmax far from its turning point gives scores about 1e-14."""
    x, y = scores(80, 0.5)
    one, other = agreement(x, y, draws=50), agreement(x * scale, y, draws=50)
    assert other.plcc_fitted == pytest.approx(one.plcc_fitted, abs=1e-6)
    assert other.rmse == pytest.approx(one.rmse, rel=1e-5)
    assert other.plcc_interval == pytest.approx(one.plcc_interval, abs=1e-9)
    assert other.krcc_interval == one.krcc_interval
    assert not recwarn.list


def test_scores_that_differ_by_a_rounding_are_no_ties() -> None:
    x = np.array([1e-18, 3e-18, 2e-18, 5e-18, 4e-18, 1.0])
    y = np.arange(6.0)
    drawn = np.random.default_rng(0).integers(0, 6, (20, 6))
    expected = [stats.kendalltau(x[d], y[d]).statistic for d in drawn]
    assert bootstrap(x, y, draws=20).krcc == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_fit_is_not_worse_than_a_line() -> None:
    """The curve comes as near to a line as one likes; from the customary start it ended in a step beside all scores."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = (rng.uniform(size=300) > 0.5) + 1e-3 * rng.normal(size=300)
        y = x + 0.3 * rng.normal(size=300)
        found = agreement(x, y, draws=0)
        assert found.plcc_fitted > found.plcc - 0.01


def test_draws_without_variation_are_left_out() -> None:
    x, y = np.array([0.1, 0.1, 0.7]), np.array([0.3, 0.2, 0.9])  # three times 0.1 have not the mean 0.1
    srcc, krcc, plcc = bootstrap(x, y, draws=200)
    drawn = np.random.default_rng(0).integers(0, 3, (200, 3))
    constant = [len(set(x[d])) == 1 or len(set(y[d])) == 1 for d in drawn]
    assert any(constant)
    for values in (srcc, krcc, plcc):
        assert np.isnan(values).tolist() == constant
    low, high = interval(srcc)
    assert -1 <= low <= high <= 1
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_constant_scores_give_no_numbers_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    for x, y in ((np.full(9, 0.5), np.arange(9.0)), (np.arange(9.0), np.full(9, 0.5))):
        found = agreement(x, y)
        assert np.isnan([found.srcc, found.krcc, found.plcc, found.plcc_fitted, found.rmse]).all()
        assert found.fit is None
        assert found.n == 9
    assert not recwarn.list


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ([1.0, 2], [1.0, 2], "2 photos cannot show a correlation"),
        ([1.0, 2, 3], [1.0, 2], "do not match"),
        ([1.0, np.nan, 3], [1.0, 2, 3], "not finite"),
        ([1.0, 2, 3], [1.0, 2, np.inf], "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(x: list[float], y: list[float], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        agreement(np.array(x), np.array(y))


def test_twenty_thousand_photos_take_seconds() -> None:
    x, y = scores(20_000, 1.0)
    began = time.process_time()
    agreement(x, y, draws=100)
    assert time.process_time() - began < 10
