"""``declip evaluate`` from the command line: numbers, files, engines side by side, and what can go wrong."""

from __future__ import annotations

import csv
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import write_engine
from declip_runtime.scorer import Scorer
from declip_runtime.scorer_manifest import ScoreSpec
from declip_sdk.cli import run

from .command import TINY, in_terminal, start
from .conftest import save_picture

FAKE = ("--backend", "fake")
PHOTOS = 12


@pytest.fixture
def koniq(tmp_path: Path) -> Path:
    """KonIQ-10k with a dozen test photos and one of another set."""
    root = tmp_path / "KonIQ"
    (root / "1024x768").mkdir(parents=True)
    rows = ["image_name,MOS,SD,set"]
    for i in range(PHOTOS + 1):
        save_picture(root / "1024x768" / f"{i}.jpg", i)
        rows.append(f"{i}.jpg,{(i * 7) % 13 + i / 3},0.5,{'test' if i < PHOTOS else 'training'}")
    (root / "koniq10k_distributions_sets.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def para(tmp_path: Path) -> Path:
    """PARA with five test photos."""
    root = tmp_path / "PARA"
    (root / "annotation").mkdir(parents=True)
    columns = ("aestheticScore", "qualityScore", "compositionScore", "colorScore", "dofScore", "lightScore",
               "isObjectEmphasis")  # fmt: skip
    rows = [",".join(["imageName", "sessionId", *(f"{name}_mean" for name in columns)])]
    for i in range(5):
        (root / "imgs" / f"session{i}").mkdir(parents=True)
        save_picture(root / "imgs" / f"session{i}" / "a.jpg", i)
        rows.append(",".join(["a.jpg", f"session{i}", *(str((i * 3 + k) % 5) for k in range(len(columns)))]))
    (root / "annotation" / "PARA-GiaaTest.csv").write_text("\n".join(rows) + "\n")
    return root


def other(path: Path, *names: str, name: str = "other") -> Path:
    """The tiny engine under another name with other scores."""
    tiny = EngineFile.open(TINY)
    specs = tuple(ScoreSpec(n, "quality", (("Good photo.", "Bad photo."),)) for n in names)
    entries = {entry: tiny.read(entry) for entry in tiny.manifest.entries}
    return write_engine(path, replace(tiny.manifest, name=name, scores=specs), entries).path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def opinions(koniq: Path) -> dict[str, float]:
    with (koniq / "koniq10k_distributions_sets.csv").open(newline="") as stream:
        return {row["image_name"]: float(row["MOS"]) for row in csv.DictReader(stream) if row["set"] == "test"}


def test_the_numbers_are_those_of_scorer_and_scipy(koniq: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    assert run(["evaluate", str(TINY), *FAKE, "--data", f"koniq={koniq}", "-o", str(out)]) == 0
    captured = capfd.readouterr()
    mos = opinions(koniq)
    with Scorer(TINY, backend="fake") as scorer:
        scores = scorer.score([koniq / "1024x768" / name for name in mos])["quality"].astype(np.float64)
    row, *paper = rows(out)
    y = np.array(list(mos.values()))
    assert float(row["srcc"]) == pytest.approx(stats.spearmanr(scores, y).statistic, abs=1e-12)
    assert float(row["krcc"]) == pytest.approx(stats.kendalltau(scores, y).statistic, abs=1e-12)
    assert float(row["plcc"]) == pytest.approx(stats.pearsonr(scores, y).statistic, abs=1e-12)
    assert (row["n"], row["split"], row["score"], row["source"]) == ("12", "test", "quality", "declip-tiny")
    assert row["engine_id"] == EngineFile.open(TINY).id
    assert [(p["source"], p["srcc"], p["plcc"]) for p in paper] == [
        ("paper, table 2: CLIP", "0.327", "0.352"),
        ("paper, table 2: DeCLIP", "0.602", "0.593"),
    ]
    srcc = f"{float(row['srcc']):.3f}"
    assert re.search(rf"declip-tiny +quality +12 +{srcc} ", captured.out)
    assert "KonIQ-10k · test · overall" in captured.out
    assert re.search(r"paper, table 2: DeCLIP +0\.602 +0\.593", captured.out)
    assert "made up by the fake backend" in captured.err
    assert f"| KonIQ-10k | test | overall | 0.327 | 0.602 |  | {srcc} |" in (out / "results.md").read_text()
    with Image.open(out / "koniq.png") as picture:
        assert min(picture.size) > 300
    assert sorted(p.name for p in out.iterdir()) == ["koniq.png", "results.csv", "results.md", "scores"]


def test_engines_stand_side_by_side_with_their_attributes(koniq: Path, para: Path, tmp_path: Path, capfd: Any) -> None:
    clip = other(tmp_path / "clip.engine", "quality", "light", "color", name="CLIP")
    declip = other(tmp_path / "declip.engine", "aesthetic", "quality", "composition", name="DeCLIP")
    out = tmp_path / "out"
    data = ["--data", f"para={para}", "--data", f"koniq={koniq}"]
    assert run(["evaluate", str(clip), str(declip), *FAKE, *data, "--draws", "0", "-o", str(out)]) == 0
    captured = capfd.readouterr()
    found = [(r["dataset"], r["target"], r["source"]) for r in rows(out) if not r["source"].startswith("paper")]
    assert found == [
        ("para", "overall", "CLIP"), ("para", "overall", "DeCLIP"), ("para", "color", "CLIP"),
        ("para", "composition", "DeCLIP"), ("para", "light", "CLIP"), ("para", "quality", "CLIP"),
        ("para", "quality", "DeCLIP"), ("koniq", "overall", "CLIP"), ("koniq", "overall", "DeCLIP"),
    ]  # fmt: skip
    assert {r[f"{name}_low"] for r in rows(out) for name in ("srcc", "krcc", "plcc")} == {""}
    assert "CLIP has no score called composition, depth_of_field, object_emphasis: not compared on PARA" in captured.err
    assert [r["srcc"] for r in rows(out) if r["target"] == "light"][1:] == ["0.488", "0.591"]


def test_engines_of_one_name_are_told_apart(koniq: Path, tmp_path: Path, capfd: Any) -> None:
    one, two = other(tmp_path / "one.engine", "quality"), other(tmp_path / "two.engine", "aesthetic")
    data = ["--data", f"koniq={koniq}"]
    assert run(["evaluate", str(one), str(two), *FAKE, *data, "--draws", "0"]) == 0
    out = capfd.readouterr().out
    assert "other (one)" in out
    assert "other (two)" in out
    assert run(["evaluate", str(one), str(one), *FAKE, *data]) == 2
    assert "one engine stands there twice" in capfd.readouterr().err


def test_without_an_engine_the_bundled_one_is_evaluated(koniq: Path, capfd: Any) -> None:
    assert run(["evaluate", *FAKE, "--data", f"koniq={koniq}", "--draws", "0"]) == 0
    assert "declip-nano" in capfd.readouterr().out


def test_a_second_table_is_made_from_the_cache(koniq: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    arguments = ["evaluate", str(TINY), *FAKE, "--data", f"koniq={koniq}", "-o", str(tmp_path / "out")]
    assert run(arguments) == 0
    first = (tmp_path / "out" / "results.csv").read_bytes()
    monkeypatch.setattr("declip_training.evaluation.scoring.Settings.scorer", None)  # calling it would fail
    capfd.readouterr()
    assert run(arguments) == 0
    assert "made up by the fake backend" in capfd.readouterr().err
    assert (tmp_path / "out" / "results.csv").read_bytes() == first
    assert run([*arguments, "--draws", "7", "--cache", str(tmp_path / "out" / "scores")]) == 0
    assert (tmp_path / "out" / "results.csv").read_bytes() != first


def test_broken_images_are_listed_counted_and_left_out(koniq: Path, tmp_path: Path, capfd: Any) -> None:
    for i in range(7):
        (koniq / "1024x768" / f"{i}.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert run(["evaluate", str(TINY), *FAKE, "--data", f"koniq={koniq}", "-o", str(out)]) == 1
    captured = capfd.readouterr()
    assert captured.err.count("is not an image") == 5
    assert "KonIQ-10k: 7 of 12 images failed and are left out; 2 are not named here" in captured.err
    assert "without 7 images that could not be scored" in captured.out
    assert (rows(out)[0]["n"], rows(out)[0]["failed"]) == ("5", "7")
    failed = list(csv.DictReader((out / "failed.csv").open(newline="")))
    assert [row["image"] for row in failed] == [f"1024x768/{i}.jpg" for i in range(7)]
    assert all("0.jpg" in row["error"] or "is not an image" in row["error"] for row in failed)
    for i in range(7):
        save_picture(koniq / "1024x768" / f"{i}.jpg", i)
    assert run(["evaluate", str(TINY), *FAKE, "--data", f"koniq={koniq}", "-o", str(out)]) == 0
    assert not (out / "failed.csv").exists()


def test_missing_images_need_to_be_allowed(koniq: Path, tmp_path: Path, capfd: Any) -> None:
    (koniq / "1024x768" / "3.jpg").unlink()
    arguments = ["evaluate", str(TINY), *FAKE, "--data", f"koniq={koniq}", "-o", str(tmp_path / "out")]
    assert run(arguments) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "1 of 12 images in its table are not on disk (1024x768/3.jpg)" in error
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--allow-missing"]) == 0
    captured = capfd.readouterr()
    assert "KonIQ-10k: 1 of 12 images are not on disk and are left out, as 1024x768/3.jpg" in captured.err
    assert "without 1 image of its table, not on disk" in captured.out
    assert (rows(tmp_path / "out")[0]["n"], rows(tmp_path / "out")[0]["missing"]) == ("11", "1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is no data set. Give one as --data NAME=PATH"),
        (["--data", "koniq"], "--data koniq: give a data set and its folder"),
        (["--data", "koniq="], "give a data set and its folder"),
        (["--data", "konik=x"], "there is no data set 'konik'. Did you mean koniq? There are: live, csiq, "),
        (["--data", "koniq=nowhere"], "KonIQ-10k: nowhere is not a folder. Get images from database.mmsp-kn.de"),
        (["--data", "koniq={koniq}", "--data", "koniq={koniq}"], "stands there twice"),
        (["--data", "koniq={koniq}", "--score", "beauty"], "declip-tiny has no such score. It gives: quality, bright"),
        (["--data", "koniq={koniq}", "--split", "validation"], "KonIQ-10k has 0 photos|has no photos"),
        (["--data", "koniq={koniq}", "-o", "{koniq}/koniq10k_distributions_sets.csv"], "is a file. Name a folder"),
        (["--data", "koniq={koniq}", "--backend", "nothing"], "nothing"),
        (["--data", "koniq={koniq}", ""], "one of the engines is an empty path"),
        (["--data", "koniq={koniq}", "no.engine"], "no.engine"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(arguments: list[str], told: str, koniq: Path, capfd: Any) -> None:
    filled = [argument.format(koniq=koniq) for argument in arguments]
    engine = [] if any(a.endswith("engine") or not a for a in filled) else [str(TINY)]
    assert run(["evaluate", *engine, *filled]) == 2
    captured = capfd.readouterr()
    assert any(part in captured.err for part in told.split("|"))
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.fixture
def biq2021(tmp_path: Path) -> Path:
    """BIQ2021 with six photos in Test and six in Train."""
    root = tmp_path / "BIQ2021"
    (root / "Images").mkdir(parents=True)
    for split, numbers in (("Test", range(6)), ("Train", range(6, 12))):
        names = {i: f"ss0{i % 3 + 1} ({i}).jpg" for i in numbers}
        for i, name in names.items():
            save_picture(root / "Images" / name, i)
        rows_ = ["Image Name,MOS", *(f"{name},{i / 12}" for i, name in names.items())]
        (root / f"{split} (Images and MOS).csv").write_text("\n".join(rows_) + "\n")
    return root


@pytest.fixture(autouse=True)
def checkout_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of the real one, which no test writes to."""
    path = tmp_path / "checkout" / "ledger.csv"
    path.parent.mkdir()
    monkeypatch.setattr("declip_training.evaluation.ledger.checkout_ledger", lambda: path)
    return path


def looks(ledger: Path) -> list[dict[str, str]]:
    with ledger.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_missing_images_of_biq2021_need_to_be_allowed_too(biq2021: Path, tmp_path: Path, capfd: Any) -> None:
    gone = "Images/ss02 (4).jpg"
    (biq2021 / gone).unlink()
    data = ["--data", f"biq2021={biq2021}"]
    arguments = ["evaluate", str(TINY), *FAKE, *data, "--draws", "0", "-o", str(tmp_path / "out")]
    assert run(arguments) == 2
    assert f"1 of 6 images in its table are not on disk ({gone})" in capfd.readouterr().err
    assert run([*arguments, "--allow-missing"]) == 0
    assert f"BIQ2021: 1 of 6 images are not on disk and are left out, as {gone}" in capfd.readouterr().err
    assert (rows(tmp_path / "out")[0]["n"], rows(tmp_path / "out")[0]["missing"]) == ("5", "1")


def test_a_look_at_biq2021_test_is_put_on_the_record(
    biq2021: Path, tmp_path: Path, checkout_ledger: Path, capfd: Any
) -> None:
    """Once for each look: not for the same numbers again, not for Train."""
    (biq2021 / "Images" / "ss01 (3).jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = ["evaluate", str(TINY), "--precision", "fp32", "--data", f"biq2021={biq2021}", "-o", str(out)]
    assert run([*arguments, "--exact", "--score", "sharpness"]) == 1
    assert f"declip: this look at BIQ2021's Test is on the record in {checkout_ledger}\n" in capfd.readouterr().err
    (look,) = looks(checkout_ledger)
    assert (look["engine"], look["engine_id"]) == ("declip-tiny", EngineFile.open(TINY).id[:16])
    assert (look["backend"], look["precision"], look["score"]) == ("openvino", "fp32", "sharpness")
    assert look["note"] == (
        "declip evaluate --split test, near-duplicates of Train included, decode=exact, views=1, 1 failed or missing"
    )
    here = rows(out)[0]
    assert (float(look["pooled"]), look["n"]) == (round(float(here["srcc"]), 4), here["n"])
    assert float(look["plcc"]) == round(float(here["plcc"]), 4)
    assert {look[name] for name in ("ss01", "mean", "pooled_unique", "n_unique", "ladder_mean")} == {""}
    again = ["--exact", "--score", "sharpness"]  # kept; one is tried again, and fails again
    for options in (again, ["--split", "train"]):
        assert run([*arguments, *options]) in (0, 1)
        assert "on the record" not in capfd.readouterr().err
    assert len(looks(checkout_ledger)) == 1
    assert run([*arguments, "--split", "all"]) == 1
    assert looks(checkout_ledger)[1]["n"] == "5"
    assert run([*arguments, "--exact", "--score", "quality"]) == 1
    assert looks(checkout_ledger)[2]["score"] == "quality", "kept scores that nobody had compared with opinions yet"


def test_a_look_that_could_not_be_recorded_is_recorded_later(
    biq2021: Path, tmp_path: Path, checkout_ledger: Path, capfd: Any
) -> None:
    data = ["--data", f"biq2021={biq2021}", "--cache", str(tmp_path / "kept"), "--draws", "0"]
    arguments = ["evaluate", str(TINY), "--precision", "fp32", *data]
    assert run([*arguments, "--ledger", "/dev/full"]) == 2
    assert "cannot write the ledger /dev/full: No space left on device" in capfd.readouterr().err
    assert run(arguments) == 0
    assert len(looks(checkout_ledger)) == 1
    assert run(arguments) == 0
    assert len(looks(checkout_ledger)) == 1


@pytest.mark.parametrize("named", [False, True])
def test_without_a_checkout_the_record_is_in_the_output_or_where_it_is_named(
    named: bool, biq2021: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("declip_training.evaluation.ledger.checkout_ledger", lambda: None)
    names = {"one": ("quality", "light", "color"), "two": ("quality", "brightness", "noise")}
    engines = [other(tmp_path / f"{name}.engine", *scores, name=name) for name, scores in names.items()]
    arguments = ["evaluate", *map(str, engines), "--precision", "fp32", "--data", f"biq2021={biq2021}"]
    out, ledger = tmp_path / "out", tmp_path / "mine.csv"
    assert run([*arguments, "-o", str(out), *(["--ledger", str(ledger)] if named else [])]) == 0
    written = ledger if named else out / "biq2021_test.csv"
    assert [look["engine"] for look in looks(written)] == ["one", "two"]
    assert capfd.readouterr().err.count(f"on the record in {written}\n") == 2
    assert (out / "biq2021_test.csv").exists() != named


def test_a_look_that_cannot_be_recorded_is_refused_before_the_work(
    biq2021: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("declip_training.evaluation.scoring.Settings.scorer", None)  # calling it would fail
    monkeypatch.setattr("declip_training.evaluation.ledger.checkout_ledger", lambda: None)
    arguments = ["evaluate", str(TINY), "--data", f"biq2021={biq2021}"]
    for options, told in (
        ([], "BIQ2021's Test is looked at on the record. Name a folder with -o, or a file with --ledger."),
        (["--ledger", str(tmp_path)], f"the ledger {tmp_path} cannot be written. Name another file with --ledger."),
        (["--ledger", str(tmp_path / "no" / "l.csv")], "l.csv cannot be written. Name another file with --ledger."),
    ):
        assert run([*arguments, *options]) == 2
        assert told in capfd.readouterr().err


def test_scores_that_are_made_up_are_no_look(biq2021: Path, checkout_ledger: Path, capfd: Any) -> None:
    assert run(["evaluate", str(TINY), *FAKE, "--data", f"biq2021={biq2021}", "--draws", "0"]) == 0
    assert "on the record" not in capfd.readouterr().err
    assert not checkout_ledger.exists()


def test_a_named_score_is_compared(koniq: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(TINY), *FAKE, "--data", f"koniq={koniq}", "-o", str(tmp_path / "out")]
    assert run([*arguments, "--score", "sharpness", "--views", "2", "--exact"]) == 0
    row = rows(tmp_path / "out")[0]
    assert (row["score"], row["views"], row["decode"]) == ("sharpness", "2", "exact")


def test_data_sets_are_listed_with_layout_and_source(capfd: Any) -> None:
    from declip_training.evaluation.datasets import DATASETS

    assert run(["evaluate", "--datasets"]) == 0
    out = capfd.readouterr().out
    for dataset in DATASETS.values():
        assert f"{dataset.name}: {dataset.title}\n" in out
        assert all(file in out for file in dataset.layout)
        assert dataset.source in out


def test_a_killed_run_says_how_to_go_on_and_does(koniq: Path, tmp_path: Path) -> None:
    for i in range(13, 400):  # enough that it is still busy when the first scores are there
        save_picture(koniq / "1024x768" / f"{i}.jpg", i)
    with (koniq / "koniq10k_distributions_sets.csv").open("a") as table:
        table.writelines(f"{i}.jpg,{i / 4},0.5,test\n" for i in range(13, 400))
    arguments = ["evaluate", TINY, *FAKE, "--views", "60", "--data", f"koniq={koniq}", "-o", tmp_path / "out"]
    process = start(*arguments)
    until = time.monotonic() + 60
    while not _cached(tmp_path / "out" / "scores") and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert b"the same command goes on with the rest\ndeclip: interrupted\n" in error
    done = _cached(tmp_path / "out" / "scores")
    assert 0 < done < 399
    assert not (tmp_path / "out" / "results.csv").exists()
    assert start(*arguments).wait(timeout=120) == 0
    assert _cached(tmp_path / "out" / "scores") == 399
    assert rows(tmp_path / "out")[0]["n"] == "399"


def _cached(folder: Path) -> int:
    return max(0, sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl")) - 1)


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX terminal")
def test_a_narrow_terminal_leaves_out_intervals(koniq: Path) -> None:
    arguments = ("evaluate", TINY, *FAKE, "--data", f"koniq={koniq}", "--draws", "20")
    code, narrow = in_terminal(*arguments, columns=80)
    assert code == 0
    assert "95 %" not in narrow
    assert "0.602" in narrow
    assert "95 %" not in in_terminal(*arguments, columns=120)[1]  # there they would push names into pieces
    wide = in_terminal(*arguments, columns=140)[1]
    (line,) = re.findall(r"declip-tiny +quality .*", wide)
    assert line.count(" to ") == 3  # SRCC, KRCC and PLCC


def test_without_scipy_the_extra_is_named() -> None:
    program = (
        "import sys\nsys.modules['scipy'] = None\nfrom declip_sdk.cli import run\n"
        "sys.exit(run(['evaluate', '--datasets']) or run(['evaluate', '--data', 'koniq=x']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "declip: Evaluating needs SciPy. Run: pip install 'declip-sdk[train]'\n"


DOCS = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_commands_of_the_documentation_are_commands() -> None:
    from declip_sdk.cli.group import declip
    from declip_training.evaluation.datasets import DATASETS

    text = DOCS.replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    declip ")]
    evaluations = [command for command in commands if command[1] == "evaluate"]
    assert len(evaluations) == 7
    for _, verb, *arguments in commands:
        command = declip.get_command(declip.make_context("declip", [], resilient_parsing=True), verb)
        assert command is not None
        command.make_context(verb, list(arguments))  # raises for what is no option
    named = {word.partition("=")[0] for command in evaluations for word in command if "=data/" in word}
    assert named == set(DATASETS) - {"live-realigned", "apddv2", "biq2021"}  # every data set of the paper


def test_the_prompts_of_the_documentation_give_all_of_table_4(tmp_path: Path) -> None:
    from declip_training.evaluation.paper import published
    from declip_training.model.prompts import PromptSet

    (tmp_path / "paper.toml").write_text("".join(re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)))
    prompts = PromptSet.read(tmp_path / "paper.toml")
    names = [spec.name for spec in prompts.specs() if published("spaq", spec.name) or published("para", spec.name)]
    assert len(names) == 10
    assert {"quality", *names} == {spec.name for spec in prompts.specs()}


def test_the_documentation_lists_every_data_set_as_its_reader_does() -> None:
    from declip_training.evaluation.datasets import DATASETS

    table = [line.split("|") for line in DOCS.splitlines() if line.startswith("| `")]
    for target in re.findall(r"\]\(([^)#]+)\)", DOCS):
        assert (Path(__file__).parents[2] / "docs" / target).exists(), target
    splits = {row[1].strip(" `"): row[4].strip() for row in table if len(row) == 7}
    assert splits == {name: ", ".join(dataset.splits) for name, dataset in DATASETS.items()}


def test_the_python_of_the_documentation_runs(koniq: Path, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "data").mkdir()
    koniq.rename(tmp_path / "data" / "KonIQ-10k")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace('decode="exact"', 'decode="exact", backend="fake"'), "evaluation.md", "exec"), {})
    assert re.match(r"-?0\.\d+ \(", capfd.readouterr().out)
