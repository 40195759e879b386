"""From scores to tables: the right numbers in the right places, beside the paper's."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import TrainingError
from declip_runtime.scorer_manifest import ScoreKind, ScoreSpec
from declip_training.evaluation.datasets import DATASETS, Collection, Photo
from declip_training.evaluation.paper import OVERALL, published
from declip_training.evaluation.plots import scatter
from declip_training.evaluation.report_files import COLUMNS, to_csv, to_markdown
from declip_training.evaluation.results import MEAN_OF_GROUPS, Result, compare, opposed, without_score
from declip_training.evaluation.scoring import Scored
from declip_training.evaluation.tables import HEADINGS, notes, table_lines

RNG = np.random.default_rng(2)
N = 40
KINDS: tuple[ScoreKind, ...] = ("degree", "quality")


def collection(name: str = "koniq", *, attributes: bool = False, groups: bool = False, missing: int = 0) -> Collection:
    photos = tuple(
        Photo(
            f"{i}.jpg",
            Path(f"{i}.jpg"),
            float(i % 10),
            "ab"[i % 2] if groups else "",
            {"noise": float(i), "contrast": float(-i)} if attributes else {},
        )
        for i in range(N)
    )
    return Collection(DATASETS[name], Path(), "test", photos, tuple(f"m{i}.jpg" for i in range(missing)))


def scored(names: tuple[str, ...] = ("quality",), *, failed: Mapping[int, str] | None = None, sign: int = 1) -> Scored:
    values = np.stack([sign * np.arange(N) % 10 + RNG.normal(0, 2, N) for _ in names], axis=1)
    errors = {f"{i}.jpg": reason for i, reason in (failed or {}).items()}
    values[list(failed or {})] = np.nan
    identity = {"engine": "abc", "backend": "fake", "precision": "fp32", "decode": "fast", "views": 1}
    return Scored(names, values, errors, identity, N)


def one(result: list[Result], target: str = OVERALL, engine: str = "A") -> Result:
    (found,) = [r for r in result if r.target == target and r.engine == engine]
    return found


def test_overall_and_attributes_are_compared_with_scores_of_their_names() -> None:
    photos = collection("spaq", attributes=True)
    scores = {"A": scored(("quality", "noise", "light")), "B": scored(("aesthetic", "contrast"))}
    results = compare(photos, scores, {"A": "quality", "B": "aesthetic"}, draws=0)
    assert [(r.target, r.engine, r.score) for r in results] == [
        ("overall", "A", "quality"), ("overall", "B", "aesthetic"),
        ("contrast", "B", "contrast"), ("noise", "A", "noise"),
    ]  # fmt: skip
    opinions = np.array([p.attributes["noise"] for p in photos.photos])
    expected = stats.spearmanr(scores["A"].values[:, 1], opinions).statistic
    assert one(results, "noise").agreement.srcc == pytest.approx(expected)
    assert without_score(photos, scores) == {"A": ["contrast"], "B": ["noise"]}


def test_a_score_of_how_much_noise_there_is_falls_where_the_opinion_rises(tmp_path: Path) -> None:
    """SPAQ's noisiness is higher for cleaner photos; a degree of contrast rises as its opinion does."""
    photos = collection("spaq", attributes=True)
    specs = {kind: tuple(ScoreSpec(n, kind, (("a", "b"),)) for n in ("noise", "contrast")) for kind in KINDS}
    engines = {kind: SimpleNamespace(scorer=SimpleNamespace(scores=specs[kind])) for kind in KINDS}
    assert [opposed(photos, cast(EngineFile, engines[kind])) for kind in KINDS] == [["noise"], []]
    assert opposed(collection(), cast(EngineFile, engines["degree"])) == []


@pytest.mark.parametrize(("photos", "reason"), [(3, "too few photos for a logistic fit"), (4, "")])
def test_a_fit_that_was_not_tried_is_not_said_to_have_failed(photos: int, reason: str) -> None:
    few = replace(collection(), photos=collection().photos[:photos])
    score = Scored(("quality",), np.arange(photos, dtype=float)[:, None], {}, scored().identity, photos)
    (result,) = compare(few, {"A": score}, {"A": "quality"}, draws=0)
    assert "converge" not in " ".join(notes([result]))
    assert reason in " ".join(notes([result]))
    (row,) = [row for row in csv.DictReader(io.StringIO(to_csv([result]))) if row["source"] == "A" and not row["group"]]
    assert row["fit"] == ("too few photos" if photos == 3 else "rises")
    constant = replace(score, values=np.ones((photos, 1)))
    (row, *_) = csv.DictReader(io.StringIO(to_csv(compare(few, {"A": constant}, {"A": "quality"}, draws=0))))
    assert row["fit"] == "constant"


def test_photos_that_one_engine_could_not_score_count_for_none() -> None:
    photos = collection(missing=2)
    scores = {"A": scored(failed={3: "x"}), "B": scored(failed={3: "x", 8: "y"})}
    results = compare(photos, scores, {"A": "quality", "B": "quality"}, draws=0)
    kept = np.delete(np.arange(N), [3, 8])
    for label in "AB":
        result = one(results, engine=label)
        expected = stats.spearmanr(scores[label].values[kept, 0], (kept % 10).astype(float)).statistic
        assert result.agreement.srcc == pytest.approx(expected)
        assert (result.agreement.n, result.failed, result.missing) == (38, 2, 2)
    assert "KonIQ-10k: without 2 images that could not be scored" in notes(results)
    assert "KonIQ-10k: without 2 images of its table, not on disk" in notes(results)
    assert len(notes(results)) == 2


def test_too_few_photos_are_an_error() -> None:
    with pytest.raises(TrainingError, match="2 photos that could be scored, of 40"):
        compare(collection(), {"A": scored(failed=dict.fromkeys(range(38), "x"))}, {"A": "quality"})


def test_groups_have_their_own_correlations_and_a_mean() -> None:
    results = compare(collection(groups=True), {"A": scored()}, {"A": "quality"}, draws=0)
    a, b, mean = one(results).groups
    assert (a.name, a.n, b.name, b.n, mean.name, mean.n) == ("a", 20, "b", 20, MEAN_OF_GROUPS, 40)
    assert mean.srcc == pytest.approx((a.srcc + b.srcc) / 2)
    x, y = one(results).predicted[::2], one(results).opinions[::2]
    assert a.srcc == pytest.approx(stats.spearmanr(x, y).statistic)
    assert one(compare(collection(), {"A": scored()}, {"A": "quality"}, draws=0)).groups == ()


@pytest.fixture(scope="module")
def results() -> list[Result]:
    spaq = {"CLIP | plain": scored(("quality", "noise")), "DeCLIP": scored(("quality", "noise"))}
    biq = {"CLIP | plain": scored(sign=-1), "DeCLIP": scored(failed={1: "x"})}
    names = dict.fromkeys(spaq, "quality")
    return [
        *compare(collection("spaq", attributes=True), spaq, names, draws=50),
        *compare(collection("biq2021", groups=True), biq, names, draws=50),
    ]


def test_lines_put_the_paper_below_the_engines(results: list[Result]) -> None:
    lines = table_lines(results)
    assert all(len(line.cells) == len(HEADINGS) for line in lines)
    of = [dict(zip(HEADINGS, line.cells, strict=True)) for line in lines]
    assert [(row["data set"], row["opinion"], row["engine"]) for row in of] == [
        ("SPAQ", "overall", "CLIP | plain"), ("SPAQ", "overall", "DeCLIP"),
        ("SPAQ", "overall", "paper, table 2: CLIP"), ("SPAQ", "overall", "paper, table 2: DeCLIP"),
        ("SPAQ", "overall", "paper, table 3: DeCLIP + CoOp, trained on KonIQ-10k"),
        ("SPAQ", "noise", "CLIP | plain"), ("SPAQ", "noise", "DeCLIP"),
        ("SPAQ", "noise", "paper, table 4: CLIP"), ("SPAQ", "noise", "paper, table 4: DeCLIP"),
        ("BIQ2021", "overall", "CLIP | plain"), ("BIQ2021", "overall", "DeCLIP"),
    ]  # fmt: skip
    assert [row["SRCC"] for row in of[2:5]] == ["0.439", "0.793", "0.867"]
    low, high = results[0].agreement.krcc_interval or (0, 0)
    assert lines[0].cells[HEADINGS.index("KRCC") + 1] == f"{low:.3f} to {high:.3f}"
    assert of[1]["SRCC"] == f"{results[1].agreement.srcc:.3f}"
    assert [line.measured for line in lines] == [not row["engine"].startswith("paper") for row in of]


def test_csv_has_every_digit(results: list[Result]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert tuple(rows[0]) == COLUMNS
    first = results[0]
    assert float(rows[0]["srcc"]) == first.agreement.srcc
    assert float(rows[0]["rmse"]) == first.agreement.rmse
    assert (float(rows[0]["srcc_low"]), float(rows[0]["srcc_high"])) == first.agreement.srcc_interval
    assert (float(rows[0]["krcc_low"]), float(rows[0]["krcc_high"])) == first.agreement.krcc_interval
    assert (rows[0]["dataset"], rows[0]["split"], rows[0]["n"], rows[0]["backend"]) == ("spaq", "test", "40", "fake")
    assert [r["srcc"] for r in rows if r["source"] == "paper, table 4: DeCLIP"] == ["0.573"]
    groups = [(r["group"], r["n"]) for r in rows if r["dataset"] == "biq2021" and r["source"] == "DeCLIP"]
    assert groups == [("", "39"), ("a", "20"), ("b", "19"), (MEAN_OF_GROUPS, "39")]
    assert {r["failed"] for r in rows if r["dataset"] == "biq2021" and not r["group"]} == {"1"}


def test_markdown_is_a_page_of_whole_tables(results: list[Result]) -> None:
    page = to_markdown(results, ["spaq.png"])
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4  # side by side, all numbers, groups, made with
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table if line.startswith("|")}) == 1
    assert tables[0][0].endswith("| paper: CLIP | paper: DeCLIP | paper: DeCLIP + CoOp | CLIP \\| plain | DeCLIP |")
    ours = [f"{r.agreement.srcc:.3f}" for r in results[:2]]
    assert f"| SPAQ | test | overall | 0.439 | 0.793 | 0.867 | {ours[0]} | {ours[1]} |" in page
    assert "![spaq.png](spaq.png)" in page
    assert "- BIQ2021: without 1 image that could not be scored" in page


def test_markdown_shows_names_as_they_are() -> None:
    """APDD's groups are "a*b*c", which would be shown without its stars; a backslash would undo that of a bar."""
    photos = replace(collection(groups=True), photos=tuple(
        replace(photo, group=("oil*classicism*still life", "`code` <b> [x] _y_ a_b")[i % 2])
        for i, photo in enumerate(collection().photos)
    ))  # fmt: skip
    page = to_markdown(compare(photos, {"A\\|B": scored()}, {"A\\|B": "quality"}, draws=0))
    assert r"| A\\\|B | oil\*classicism\*still life | 20 |" in page
    assert r"| A\\\|B | \`code\` \<b> \[x] \_y\_ a_b | 20 |" in page


def test_a_score_that_points_the_wrong_way_is_marked() -> None:
    y = np.arange(N) % 10
    turned = Scored(("quality",), -(y[:, None] ** 3.0), {}, scored().identity, N)
    results = compare(collection(), {"A": turned}, {"A": "quality"}, draws=0)
    (line, *_) = table_lines(results)
    cells = dict(zip(HEADINGS, line.cells, strict=True))
    assert cells["SRCC"] == "-1.000"
    assert cells["PLCC fitted"].endswith("*")
    assert any("the fitted curve falls" in note for note in notes(results))


def test_constant_scores_are_dashes_with_a_note() -> None:
    flat = Scored(("quality",), np.full((N, 1), 0.5), {}, scored().identity, N)
    results = compare(collection(), {"A": flat}, {"A": "quality"})
    cells = dict(zip(HEADINGS, table_lines(results)[0].cells, strict=True))
    assert (cells["SRCC"], cells["PLCC fitted"], cells["RMSE"]) == ("-", "-", "-")
    assert notes(results) == ["KonIQ-10k, overall, A: scores or opinions are all the same, so there is no correlation"]
    assert next(csv.DictReader(io.StringIO(to_csv(results))))["srcc"] == ""
    assert scatter(results).startswith(b"\x89PNG")


def test_the_plot_has_a_panel_for_each_engine_and_is_the_same_twice(results: list[Result]) -> None:
    overall = [r for r in results if r.target == OVERALL and r.collection.dataset.name == "spaq"]
    one, two = scatter(overall[:1]), scatter(overall)
    sizes = [Image.open(io.BytesIO(picture)).size for picture in (one, two)]
    assert sizes[1][0] == pytest.approx(2 * sizes[0][0], abs=2)
    assert two == scatter(overall)


@pytest.mark.parametrize("table", [2, 4])
def test_the_papers_numbers_are_the_papers(table: int) -> None:
    """Sums over the columns of the printed tables, so that a slip in one digit shows."""
    targets = [OVERALL] if table == 2 else [*_SPAQ, *_PARA]
    rows = [p for name in DATASETS for target in targets for p in published(name, target) if p.table == table]
    assert len(rows) == (32 if table == 2 else 20)
    for model, srcc, plcc in {2: (("CLIP", 5.605, 5.746), ("DeCLIP", 7.502, 7.143)),
                              4: (("CLIP", 2.993, 2.827), ("DeCLIP", 5.027, 4.100))}[table]:  # fmt: skip
        mine = [p for p in rows if p.model == model]
        assert sum(p.srcc for p in mine) == pytest.approx(srcc, abs=1e-9)
        assert sum(p.plcc or 0 for p in mine) == pytest.approx(plcc, abs=1e-9)


def test_the_papers_third_table_is_the_papers() -> None:
    """Sums again; the second one notices two numbers that changed places."""
    rows = {name: p for name in DATASETS for p in published(name) if p.table == 3}
    assert {p.model.rpartition(" ")[2] for p in rows.values()} == {"KonIQ-10k", "AVA"}
    assert [name for name, p in rows.items() if p.model.endswith("AVA")] == ["aadb", "para", "apdd"]
    assert sum(p.srcc for p in rows.values()) == pytest.approx(4.120, abs=1e-9)
    assert sum(place * p.srcc for place, p in enumerate(rows.values(), 1)) == pytest.approx(13.579, abs=1e-9)


def test_the_papers_numbers_beside_another_score_are_said_to_be_of_quality() -> None:
    score = {"A": scored(("quality", "aesthetic"))}
    for name, noted in (("quality", False), ("aesthetic", True)):
        results = compare(collection(), score, {"A": name}, draws=0)
        assert ("the paper's numbers are of Good photo. / Bad photo." in " ".join(notes(results))) is noted


_SPAQ = ("brightness", "colorfulness", "contrast", "noise", "sharpness")
_PARA = ("composition", "color", "depth_of_field", "light", "object_emphasis")


def test_attributes_of_the_paper_are_attributes_of_the_readers() -> None:
    assert all(len(published("spaq", name)) == 2 for name in _SPAQ)
    assert all(len(published("para", name)) == 2 for name in _PARA)
    assert published("para", "quality") == published("biq2021") == ()
