"""The ledger of looks at BIQ2021's Test: what is appended, by whom, and where."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from skimage import data

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import TrainingError, UsageError
from declip_runtime.scorer import Scorer
from declip_training.data.biq2021 import read_splits
from declip_training.evaluation import ledger
from declip_training.evaluation.biq2021 import evaluate_engine, main
from declip_training.evaluation.datasets import DATASETS, Collection, collect
from declip_training.evaluation.ledger import COLUMNS, append_ledger, whole_test_row
from declip_training.evaluation.scoring import Scored
from declip_training.recipes.nano_data import Sources

from .engines import TINY

SUBSETS = ("ss01", "ss02", "ss03")
TEST = 5  # photos of each subset, and a copy of a Train photo


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BIQ2021 with a Train photo that Test has too, and the layout of the photos that judge by ladders."""
    root = tmp_path_factory.mktemp("data")
    images, rng = root / "BIQ2021" / "Images", np.random.default_rng(0)
    images.mkdir(parents=True)
    tables: dict[str, list[str]] = {"Train": [], "Test": []}
    for split, count in (("Train", 10), ("Test", TEST)):
        for subset in SUBSETS:
            for i in range(count):
                name = f"{subset} ({split} {i}).jpg"
                small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC).save(images / name)
                tables[split].append(f"{name},{rng.random():.4f}")
    copy = "ss02 (Test copy).jpg"
    (images / copy).write_bytes((images / "ss02 (Train 3).jpg").read_bytes())
    tables["Test"].append(f"{copy},0.9")
    for split, rows in tables.items():
        (root / "BIQ2021" / f"{split} (Images and MOS).csv").write_text("\n".join(["Image Name,MOS", *rows]) + "\n")
    photo = Image.fromarray(data.astronaut()[100:124, 200:227])
    for count, form, folder in (
        (41, "png", "codec-corpus/CID22/CID22-512/validation"),
        (200, "jpg", "BSDS500/BSDS500/data/images/test"),
    ):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            photo.save(root / folder / f"{i:03}.{form}")
    return root


@pytest.fixture(autouse=True)
def few_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two photos judge by ladders, instead of 81."""
    whole = Sources.judging.fget
    assert whole is not None
    monkeypatch.setattr(Sources, "judging", property(lambda sources: whole(sources)[:2]))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_near_duplicates_of_train_do_not_count_in_what_counts(root: Path) -> None:
    row = evaluate_engine(TINY, Sources(root), score="quality", precision="fp32")
    splits = read_splits(root / "BIQ2021")
    with Scorer(TINY, precision="fp32", decode="exact") as scorer:
        predicted = scorer.score([photo.path for photo in splits.test])["quality"]
    mos = np.array([photo.mos for photo in splits.test])

    def rank(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
        return float(stats.spearmanr(predicted[chosen], mos[chosen]).statistic)

    unique = np.array(["copy" not in photo.path.name for photo in splits.test])
    each = [rank(unique & np.array([p.subset == name for p in splits.test])) for name in SUBSETS]
    assert [float(row[name]) for name in SUBSETS] == pytest.approx(each, abs=1e-4)
    assert float(row["mean"]) == pytest.approx(np.mean(each), abs=1e-4)
    assert float(row["pooled_unique"]) == pytest.approx(rank(unique), abs=1e-4)
    assert float(row["pooled"]) == pytest.approx(rank(unique | True), abs=1e-4)
    assert (row["n_unique"], row["n"], row["n_ladder_photos"]) == (str(3 * TEST), str(3 * TEST + 1), "2")
    assert row["engine_id"] == EngineFile.open(TINY).id[:16]
    assert set(row) == set(COLUMNS) - {"date", "commit", "note"}


def test_every_evaluation_appends_a_row_and_the_header_stands_once(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "looks" / "ledger.csv"
    arguments = [str(TINY), "--data", str(root), "--ledger", str(path), "--precision", "fp32"]
    for note in ("first", 'again, "quoted"'):
        assert main([*arguments, "--note", note]) == 0
    assert f"n_unique               {3 * TEST}\n" in capsys.readouterr().out
    first, second = read(path)
    assert (first["note"], second["note"]) == ("first", 'again, "quoted"')
    assert {k: v for k, v in first.items() if k not in ("date", "note")} == {
        k: v for k, v in second.items() if k not in ("date", "note")
    }
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d", first["date"])
    assert first["commit"]
    assert path.read_bytes().count(b"\n") == 3
    assert b"\r" not in path.read_bytes()
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_more_views_are_another_look_and_the_note_says_so(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    arguments = [str(TINY), "--data", str(root), "--ledger", str(path), "--precision", "fp32", "--note", "why"]
    assert main(arguments) == main([*arguments, "--views", "2"]) == 0
    one, two = read(path)
    assert (one["note"], two["note"]) == ("why", "views=2; why")
    assert one["mean"] != two["mean"]


def test_what_cannot_work_leaves_no_row(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger.csv"
    assert main([str(TINY), "--data", str(tmp_path), "--ledger", str(path)]) == 2
    assert "BIQ2021 is incomplete" in capsys.readouterr().err
    assert not path.exists()
    assert main([str(TINY), "--data", str(root), "--ledger", str(tmp_path), "--precision", "fp32"]) == 2
    assert capsys.readouterr().err.endswith("Name another file with --ledger.\n")
    with pytest.raises(TrainingError, match=r"cannot write the ledger .*: Is a directory\. Name another"):
        append_ledger(tmp_path, {"engine": "mine"})


def test_a_row_is_not_glued_to_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    append_ledger(path, {"engine": "a"}, "first")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append_ledger(path, {"engine": "b"}, "second")
    assert [(row["engine"], row["note"]) for row in read(path)] == [("a", "first"), ("b", "second")]


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"\xff\xd8\xff\xe0 a photo", ",".join(COLUMNS).encode() + b"\n\xe9\n"]
)
def test_another_file_is_no_ledger(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is no ledger: .* Name another file with --ledger"):
        ledger.require_ledger(path)
    path.write_bytes(b"")
    ledger.require_ledger(path)


def test_the_committed_ledger_has_these_columns() -> None:
    committed = ledger.checkout_ledger()
    assert committed is not None
    with committed.open(newline="", encoding="utf-8") as stream:
        assert next(csv.reader(stream)) == list(COLUMNS)


def scored(collection: Collection, failed: int = 0) -> Scored:
    """Two scores, of which the second follows people's opinions backwards."""
    opinions = np.array([photo.score for photo in collection.photos])
    values = np.stack([opinions**3, -opinions], axis=1)
    values[:failed] = np.nan
    identity = {"backend": "openvino", "precision": "bf16"}
    return Scored(("quality", "noise"), values, {}, identity, len(opinions))


@pytest.mark.parametrize("split", ["test", "all"])
def test_a_row_of_all_of_test_says_nothing_of_what_was_not_looked_at(root: Path, split: str) -> None:
    """Train photos do not count, and columns that leave near-duplicates out are empty."""
    collection = collect(DATASETS["biq2021"], root / "BIQ2021", split)
    engine = EngineFile.open(TINY)
    row = whole_test_row(collection, scored(collection, failed=2), engine, "quality")
    assert row is not None
    assert (row["n"], row["pooled"]) == (str(3 * TEST + 1 - 2), "1.0000")
    assert 0.8 < float(row["plcc"]) < 1
    assert set(row) == {"engine", "engine_id", "backend", "precision", "score", "pooled", "plcc", "n"}
    turned = whole_test_row(collection, scored(collection), engine, "noise")
    assert turned is not None
    assert turned["pooled"] == "-1.0000"


def test_what_shows_nothing_of_test_is_no_look(root: Path) -> None:
    engine = EngineFile.open(TINY)
    train = collect(DATASETS["biq2021"], root / "BIQ2021", "train")
    assert whole_test_row(train, scored(train), engine, "quality") is None
    test = collect(DATASETS["biq2021"], root / "BIQ2021", "test")
    assert whole_test_row(test, scored(test, failed=3 * TEST + 1 - 2), engine, "quality") is None
