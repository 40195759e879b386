"""From measures to the report: means, differences and intervals by hand, and what the files say."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from declip_runtime.errors import TrainingError
from declip_runtime.generation.jobs import Job
from declip_training.evaluation.generation.conditions import CONTROLS, Condition
from declip_training.evaluation.generation.measures import Measures
from declip_training.evaluation.generation.plan import DP, IP, Planned
from declip_training.evaluation.generation.report import Results, table_cells, to_csv, to_json_lines, to_markdown
from declip_training.evaluation.generation.study import STAND_IN
from declip_training.evaluation.generation.summary import ALL, DIFFERENCE, MEASURES, Picture, Row, summarise

IMAGE = Path("a.png")


def _condition(name: str, control: int = 0) -> Condition:
    perceptual, semantic = ((IMAGE, f"a {name}"), (f"{name} light", IMAGE), (IMAGE, Path(f"{name}.png")))[control]
    return Condition(1, name, perceptual, semantic)


def _picture(
    condition: Condition, method: str, sc: float | None, *, scale: float = 1.0, seed: int = 0, pc: float = 0.5
) -> Picture:
    """SC as given, OF twice and leak half of that; None failed."""
    file = f"{condition.name}-{method}-{scale:g}-{seed}.png"
    planned = Planned(condition, method, scale, seed, Job(1, file, {}, (seed,), (file,), ""))
    if sc is None:
        return Picture(planned, None, "out of memory")
    return Picture(planned, Measures(sc, pc, 2 * sc, sc / 2, None))


def _row(rows: list[Row], method: str, control: str = CONTROLS[0], scale: float = 1.0) -> Row:
    (found,) = [row for row in rows if (row.control, row.scale, row.method) == (control, scale, method)]
    return found


def test_seeds_are_averaged_within_conditions_and_missing_ones_leave_their_pair_out() -> None:
    a, b, c = map(_condition, "abc")
    pictures = [
        # a: seeds 0 and 1 by both; b: seed 1 of IP failed; c: DP failed altogether
        _picture(a, DP, 0.2), _picture(a, DP, 0.4, seed=1), _picture(a, IP, 0.1), _picture(a, IP, 0.1, seed=1),
        _picture(b, DP, 0.5), _picture(b, DP, 9.0, seed=1), _picture(b, IP, 0.4), _picture(b, IP, None, seed=1),
        _picture(c, DP, None), _picture(c, IP, 9.0),
    ]  # fmt: skip
    rows = summarise(pictures)
    assert [row.method for row in rows] == [DP, IP, DIFFERENCE]
    dp, ip, difference = (_row(rows, method) for method in (DP, IP, DIFFERENCE))
    assert {(row.n, row.pictures) for row in rows} == {(2, 3)}
    assert dp.estimates["sc"].mean == pytest.approx((0.3 + 0.5) / 2)
    assert ip.estimates["sc"].mean == pytest.approx((0.1 + 0.4) / 2)
    assert difference.estimates["sc"].mean == pytest.approx(0.15)
    assert difference.estimates["pc"].mean == pytest.approx(0.0)
    assert dp.estimates["cc"].mean == pytest.approx((0.4 + 0.5) / 2)
    assert dp.estimates["of"].mean == pytest.approx(0.8)
    assert difference.estimates["leak"].mean == pytest.approx(0.075)
    assert all(estimate.interval is None for row in rows for estimate in row.estimates.values())  # of 2 conditions


def test_intervals_are_those_of_all_possible_draws() -> None:
    dp, ip = np.array([0.1, 0.5, 0.2, 0.9]), np.array([0.3, 0.1, 0.2, 0.4])
    pictures = []
    for name, x, y in zip("abcd", dp, ip, strict=True):
        pictures += [_picture(_condition(name), DP, x), _picture(_condition(name), IP, y)]
    rows = summarise(pictures, draws=20_000)
    draws = np.array(list(itertools.product(range(4), repeat=4)))
    for method, values in ((DP, dp), (IP, ip), (DIFFERENCE, dp - ip)):
        low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
        assert _row(rows, method).estimates["sc"].interval == pytest.approx((low, high), abs=0.02)
        assert _row(rows, method).estimates["of"].interval == pytest.approx((2 * low, 2 * high), abs=0.04)
    assert _row(rows, DP).estimates["pc"].interval == pytest.approx((0.5, 0.5))
    assert summarise(pictures, draws=20_000) == rows
    assert all(e.interval is None for row in summarise(pictures, draws=0) for e in row.estimates.values())


def test_all_controls_are_drawn_within_their_types() -> None:
    near, far = [0.0, 0.1, 0.2], [10.0, 10.1, 10.2]
    pictures = []
    for control, values in ((0, near), (1, far)):
        for number, value in enumerate(values):
            condition = _condition(f"c{control}{number}", control)
            pictures += [_picture(condition, DP, value), _picture(condition, IP, 0.0)]
    rows = summarise(pictures, draws=20_000)
    assert list(dict.fromkeys(row.control for row in rows)) == [CONTROLS[0], CONTROLS[1], ALL]
    estimate = _row(rows, DP, ALL).estimates["sc"]
    assert estimate.mean == pytest.approx(5.1)
    one = np.array(near)[np.array(list(itertools.product(range(3), repeat=3)))].mean(axis=1)
    low, high = np.quantile(5 + (one[:, None] + one).ravel() / 2, [0.025, 0.975])
    assert estimate.interval == pytest.approx((low, high), abs=0.01)
    assert _row(rows, DP, ALL).n == 6
    few = summarise([p for p in pictures if p.planned.condition.name != "c10"])
    assert _row(few, DP, ALL).estimates["sc"].interval is None  # one type has 2 conditions


def test_strengths_are_rows_of_their_own() -> None:
    pictures = [
        _picture(_condition("a"), method, scale / (1 if method == DP else 2), scale=scale)
        for scale in (0.4, 1.0)
        for method in (DP, IP)
    ]
    rows = summarise(pictures)
    assert [(row.scale, row.method) for row in rows] == [(s, m) for s in (0.4, 1.0) for m in (DP, IP, DIFFERENCE)]
    assert _row(rows, DIFFERENCE, scale=0.4).estimates["sc"].mean == pytest.approx(0.2)
    assert _row(rows, DIFFERENCE, scale=1.0).estimates["sc"].mean == pytest.approx(0.5)


def test_nothing_to_compare_is_an_error_with_the_reason() -> None:
    with pytest.raises(TrainingError, match=r"no condition has a picture by both methods .* out of memory"):
        summarise([_picture(_condition("a"), DP, 0.1), _picture(_condition("a"), IP, None)])


@pytest.fixture
def results() -> Results:
    pictures = []
    for name, x in zip("abc", (0.1, 0.2, 0.6), strict=True):
        condition = _condition(name)
        pictures += [_picture(condition, DP, x), _picture(condition, IP, 0.1), _picture(condition, IP, None, seed=1)]
    return Results(summarise(pictures), pictures, ["a | note"], {"generator": "g<1>"})


def test_the_page_says_first_what_it_is_not_and_keeps_the_papers_numbers_apart(results: Results) -> None:
    page = to_markdown(results, ["sheet-1.jpg"])
    assert page.index(STAND_IN) < page.index("| control |")
    assert "stand-in for the user study" in STAND_IN
    assert "not comparable with the paper's numbers" in STAND_IN
    table, study = page[: page.index("## The paper's user study")], page[page.index("## The paper's user study") :]
    assert "0.696" not in table
    assert "| IP-Adapter | 0.628 | 0.536 |" in study
    assert "| DP-Adapter | 0.696 | 0.641 |" in study
    assert "- a \\| note\n" in page
    assert "| generator | g\\<1> |" in page
    assert "![sheet-1.jpg](sheet-1.jpg)" in page
    assert page.count("out of memory") == 3


def test_the_tables_figures(results: Results) -> None:
    dp, ip, difference = map(table_cells, results.rows)
    assert dp[:4] == (CONTROLS[0], "1", DP, "3")
    assert ip[4:] == tuple(f"{v} ({v} to {v})" for v in ("0.100", "0.500", "0.300", "0.200", "0.050"))
    assert re.fullmatch(r"0\.300 \(0\.100 to 0\.[0-9]{3}\)", dp[4])
    assert re.fullmatch(r"\+0\.200 \(\+0\.000 to \+0\.[0-9]{3}\)", difference[4])
    line = f"| {' | '.join(difference)} |"
    assert line in to_markdown(results)


def test_csv_has_every_digit(results: Results) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(results.rows))))
    assert [line["method"] for line in lines] == [DP, IP, DIFFERENCE]
    for line, row in zip(lines, results.rows, strict=True):
        assert (line["control"], line["scale"], line["conditions"], line["pictures"]) == (CONTROLS[0], "1", "3", "3")
        for name in MEASURES:
            estimate = row.estimates[name]
            assert estimate.interval is not None
            assert float(line[name]) == estimate.mean
            assert (float(line[f"{name}_low"]), float(line[f"{name}_high"])) == estimate.interval
    without = list(csv.DictReader(io.StringIO(to_csv(summarise(results.pictures, draws=0)))))
    assert without[0]["sc_low"] == ""


def test_json_lines_have_every_picture(results: Results) -> None:
    lines = [json.loads(line) for line in to_json_lines(results.pictures).splitlines()]
    assert len(lines) == 9
    assert {**lines[0]} == {
        "name": "a", "perceptual_image": "a.png", "perceptual_text": None, "semantic_image": None,
        "semantic_text": "a a", "control": CONTROLS[0], "method": DP, "scale": 1.0, "seed": 0,
        "file": "a-DP-Adapter-1-0.png", "sc": 0.1, "pc": 0.5, "cc": 0.3, "of": 0.2, "leak": 0.05,
        "leak_semantic": 0.05, "leak_perceptual": None, "error": None,
    }  # fmt: skip
    assert (lines[2]["sc"], lines[2]["leak"], lines[2]["error"]) == (None, None, "out of memory")
