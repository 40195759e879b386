"""How benchmarks compare peers: within rounds, at the batch that suits the other side best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from declip_runtime.benchmark import Timing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    return common


def test_a_swing_of_the_machine_does_not_reach_the_ratio(common: Any) -> None:
    """Twice as fast in every round, while the machine slows down by eight: medians alone would say other things."""
    other, ours = Timing((1.0, 2.0, 8.0)), Timing((0.5, 1.0, 4.0))
    assert common.times_as_fast(ours, other) == 2
    assert common.times_as_fast(other, ours) == 0.5


def test_peers_take_turns_and_each_has_a_time_a_round(common: Any) -> None:
    calls: list[str] = []
    peers = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    timings = common.interleaved(peers, seconds=0, rounds=3, lead_in=False)
    assert calls == ["a", "b"] * 3
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_a_bar_is_judged_at_the_batch_that_suits_the_other_side(common: Any) -> None:
    import model_only

    def row(peer: str, batch: int, rate: float, **ratios: float) -> dict[str, Any]:
        return {"model": model_only.VIT, "peer": peer, "batch": batch, "images/s": rate, **ratios}

    ours = f"{model_only.OURS} bf16"
    ratios = {batch: {f"x {model_only.TORCH}": by_torch} for batch, by_torch in ((1, 9.0), (16, 5.5), (64, 6.0))}
    rows = [row(ours, batch, 100.0, **columns) for batch, columns in ratios.items()]
    rows += [row(model_only.TORCH, batch, rate) for batch, rate in ((1, 10.0), (16, 20.0), (64, 15.0))]
    bars = {bar.what: bar for bar in model_only.bars(rows)}
    assert bars[f"{model_only.VIT}, ours in bf16 / torch fp32 eager"].measured == 5.5
    assert bars[f"{model_only.VIT}, ours in bf16 / torch fp32 eager"].met
    unmeasured = bars[f"{model_only.VIT}, ours in bf16 / GEMM ceiling"]
    assert math.isnan(unmeasured.measured)
    assert unmeasured.row()[""] == "not measured"
