"""What the benchmark of JPEG files says: ratios within rounds, an image at a time, and which engine a row is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from declip_runtime.benchmark import Timing
from declip_runtime.engine_file import EngineFile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = Path(__file__).parents[1] / "data" / "tiny.engine"


@pytest.fixture
def from_files(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import from_files

    return from_files


def test_ratios_from_files_are_taken_within_rounds(from_files: Any) -> None:
    """The machine slows down by eight meanwhile; ours takes four times as many images in a call."""
    naive, decoding, ours = from_files.NAIVE, from_files.DECODING, from_files.OURS
    timings = {naive: Timing((10, 20, 80)), decoding: Timing((4, 8, 32)), ours: Timing((40, 4, 80))}
    rows = from_files.compare(timings, {naive: 10, decoding: 40, ours: 40})
    assert [row["peer"] for row in rows] == [naive, decoding, ours]
    assert rows[1][f"x {naive}"] == 10  # 10 images in 10 s against 40 in 4 s, in every round
    assert rows[0][f"x {decoding}"] == 0.1
    assert rows[2][f"x {naive}"] == 4  # of 1, 20 and 4; the medians' ratio would be 2
    assert rows[2][f"x {decoding}"] == 0.4
    bars = {bar.what: bar.measured for bar in from_files.bars_of("tiny", rows, {"mean drift": 0.001})}
    assert list(bars.values()) == [4, 0.4, 0.001]


def test_a_row_says_which_engine_it_is_of(from_files: Any) -> None:
    import common

    engine = EngineFile.open(TINY)
    assert common.engine_column(engine) == {"engine": engine.id[:8]}
    assert common.engine_column(None) == {"engine": ""}
