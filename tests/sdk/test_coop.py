"""``declip coop`` from the command line: what it learns is exported and scores, and each mistake is one line."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from declip_runtime.scorer import Scorer
from declip_sdk.cli import run
from declip_training.model.checkpoint import ProjectorCheckpoint, load_projectors, save_projectors, tower_sha256
from declip_training.model.projector import Projector
from declip_training.model.tower import load_clip
from declip_training.train.sole import sole
from declip_training.train.world import World

from .command import DECLIP

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PHOTOS = 60


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tower") / "coop-verb.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Photos from dark to bright; people are said to like the bright ones."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    rows = []
    for index in range(PHOTOS):
        pixels = np.clip(rng.normal(20 + 200 * index / PHOTOS, 12, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index} é.png")
        rows.append({"image": f"photos/{index} é.png", "score": 1 + 4 * index / PHOTOS, "note": ""})
    return write(tmp_path / "ratings.csv", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(ratings: Path) -> list[dict[str, Any]]:
    with ratings.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def learn(ratings: Path, tower: Path, tmp_path: Path) -> Callable[..., int]:
    def run_it(*extra: str | Path, table: Path = ratings) -> int:
        usual = "--pretrained random --tokens 3 --steps 60 --lr 3e-2 --batch 32 --validation 0.3 --check-every 20"
        command = ["coop", "--tower", tower, "--ratings", table, "-o", tmp_path / "run", "--threads", 1]
        return run([*map(str, command), *usual.split(), *map(str, extra)])

    return run_it


def test_what_is_learned_is_exported_and_scores(
    learn: Callable[..., int], tower: Path, tmp_path: Path, ratings: Path, capfd: Any
) -> None:
    assert learn("--position", "after", "--plcc", "0.5") == 0
    shown = capfd.readouterr()
    assert shown.out.strip() == str(tmp_path / "run" / "prompts.toml")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["with context"]["srcc"] > max(0.8, report["words alone"]["srcc"])
    assert f"SRCC {report['with context']['srcc']:.4f}" in shown.err
    assert report["photos"] == PHOTOS
    assert f"{PHOTOS - report['held out']} photos of" in shown.err
    export = ["export", "--tower", tower, "--pretrained", "random", "--prompts", tmp_path / "run" / "prompts.toml"]
    assert run([*map(str, export), "-o", str(tmp_path / "coop.engine")]) == 0
    photos = [tmp_path / row["image"] for row in rows_of(ratings)]
    with Scorer(tmp_path / "coop.engine", precision="fp32", threads=1) as scorer:
        assert scorer.engine.manifest.score_names == ("quality",)
        scores = scorer.score(photos).quality
    assert stats.spearmanr(scores, np.arange(PHOTOS)).statistic > 0.8


def test_the_tower_runs_once(learn: Callable[..., int], tmp_path: Path, ratings: Path, capfd: Any) -> None:
    assert learn() == 0
    features = tmp_path / "run" / "features" / "00000.safetensors"
    made = features.stat().st_mtime_ns
    assert learn("--tokens", "8", "--words", "a photo", "--context", "shared") == 0
    assert features.stat().st_mtime_ns == made
    settings = json.loads((tmp_path / "run" / "report.json").read_text())["settings"]
    assert (settings["tokens"], settings["context"]) == (2, "shared"), "as many as the words have"
    Image.new("RGB", (40, 40)).save(tmp_path / rows_of(ratings)[0]["image"])
    assert learn() == 0
    assert features.stat().st_mtime_ns > made


def test_photos_that_could_not_be_read_are_tried_again(
    learn: Callable[..., int], tmp_path: Path, ratings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing of the file tells that it was repaired; the others are not."""
    from declip_training import rated_features

    assert learn() == 0
    kept = tmp_path / "run" / "features" / "00000.safetensors"
    whole = load_file(kept)["features"]
    shutil.rmtree(tmp_path / "run")
    photo = tmp_path / rows_of(ratings)[7]["image"]
    content, times = photo.read_bytes(), (photo.stat().st_atime_ns, photo.stat().st_mtime_ns)
    photo.write_bytes(bytes(len(content)))
    os.utime(photo, ns=times)
    assert learn() == 2
    photo.write_bytes(content)
    os.utime(photo, ns=times)
    seen: list[int] = []
    embed = rated_features._embed

    def counted(towers: Any, paths: Any, *rest: Any) -> Any:
        seen.append(len(paths))
        return embed(towers, paths, *rest)

    monkeypatch.setattr(rated_features, "_embed", counted)
    assert learn() == 0
    assert seen == [1]
    assert torch.allclose(load_file(kept)["features"], whole, atol=1e-5)
    assert learn() == 0
    assert seen == [1]


def test_the_numbers_are_of_the_engine_on_what_was_held_out(
    learn: Callable[..., int], tower: Path, tmp_path: Path, ratings: Path
) -> None:
    """With a projector that changes scores, another scale and position: all reach the prompts file and the report."""
    run_folder, projector = tmp_path / "run", tmp_path / "projector.safetensors"
    with torch.random.fork_rng():
        clip, _, _ = load_clip(str(tower), "random")
        generator = torch.Generator().manual_seed(5)
        heads = [Projector(16, 24).randomize(generator, 4.0) for _ in range(2)]
        save_projectors(projector, ProjectorCheckpoint(str(tower), "random", tower_sha256(clip.visual), *heads))
    assert learn("--projector", projector, "--position", "around", "--scale", "40", "--check-every", "60") == 0
    report, words = json.loads((run_folder / "report.json").read_text()), (run_folder / "prompts.toml").read_text()
    assert report["settings"]["logit_scale"] == 40
    assert report["projector_sha256"] == load_projectors(projector).sha256
    assert report["tower_sha256"] == tower_sha256(clip.visual)
    assert "logit_scale = 40.0" in words
    assert 'position = "around"' in words
    export = ["export", "--tower", tower, "--pretrained", "random", "--projector", projector, "--weights", "float32"]
    export += ["--prompts", run_folder / "prompts.toml", "-o", tmp_path / "coop.engine"]
    assert run([*map(str, export)]) == 0
    rows = rows_of(ratings)
    held = [int.from_bytes(hashlib.sha256(r["image"].encode()).digest()[:8], "big") < 0.3 * 2**64 for r in rows]
    chosen = [row for row, is_held in zip(rows, held, strict=True) if is_held]
    assert len(chosen) == report["held out"]
    with Scorer(tmp_path / "coop.engine", precision="fp32", threads=1) as scorer:
        scores = scorer.score([tmp_path / row["image"] for row in chosen]).quality
    opinions = [float(row["score"]) for row in chosen]
    assert report["with context"]["srcc"] == pytest.approx(stats.spearmanr(scores, opinions).statistic, abs=0.02)
    assert report["with context"]["plcc"] == pytest.approx(stats.pearsonr(scores, opinions).statistic, abs=0.01)
    log = [json.loads(line) for line in (run_folder / "coop.jsonl").read_text().splitlines()]
    assert max(line["validation"] for line in log) == pytest.approx(report["with context"]["srcc"])


def test_what_is_held_out_teaches_nothing(learn: Callable[..., int], tmp_path: Path, ratings: Path) -> None:
    """Its opinions choose the step only: with one step to choose from, other opinions change nothing."""
    assert learn("--check-every", "60") == 0
    context = (tmp_path / "run" / "coop.safetensors").read_bytes()
    rows = rows_of(ratings)
    ends = {float(row["score"]) for row in rows}
    for row in rows:
        held = int.from_bytes(hashlib.sha256(row["image"].encode()).digest()[:8], "big") < 0.3 * 2**64
        if held and min(ends) < float(row["score"]) < max(ends):
            row["score"] = 6.0 - float(row["score"])
    assert learn("--check-every", "60", table=write(tmp_path / "other.csv", rows)) == 0
    assert (tmp_path / "run" / "coop.safetensors").read_bytes() == context
    assert learn("--check-every", "60", "--plcc", "5") == 0
    assert (tmp_path / "run" / "coop.safetensors").read_bytes() != context


def test_a_context_that_does_not_help_is_said_so(
    learn: Callable[..., int], tmp_path: Path, ratings: Path, capfd: Any
) -> None:
    rows = rows_of(ratings)
    np.random.default_rng(1).shuffle(scores := [row["score"] for row in rows])
    for row, score in zip(rows, scores, strict=True):
        row["score"] = score
    for seed in range(4):  # chance may find one that helps
        assert learn("--seed", str(seed), "--check-every", "60", table=write(tmp_path / "noise.csv", rows)) == 0
        report, shown = json.loads((tmp_path / "run" / "report.json").read_text()), capfd.readouterr().err
        better = report["with context"]["srcc"] > report["words alone"]["srcc"]
        assert ("no better than the words alone" in shown) is not better


def test_a_context_is_exported_with_what_it_was_learned_on_only(
    learn: Callable[..., int], tower: Path, tmp_path: Path, capfd: Any
) -> None:
    """Another tower or other projectors give scores that nobody has judged; words without a context go with all."""
    assert learn() == 0
    other, projector = tmp_path / "coop-other.json", tmp_path / "projector.safetensors"
    other.write_text(json.dumps({**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "layers": 2}}))
    with torch.random.fork_rng():
        clip, _, _ = load_clip(str(tower), "random")
        heads = Projector(16, 24), Projector(16, 24)
        save_projectors(projector, ProjectorCheckpoint(tower.stem, "random", tower_sha256(clip.visual), *heads))

    def export(prompts: Path, *what: str | Path) -> int:
        made = ["export", "--pretrained", "random", "--no-parity", "--prompts", prompts, "-o", tmp_path / "x.engine"]
        return run([*map(str, made), *map(str, what)])

    prompts, words = tmp_path / "run" / "prompts.toml", tmp_path / "words.toml"
    assert export(prompts, "--tower", other) == 2
    assert "learned on another tower" in capfd.readouterr().err
    assert export(prompts, "--tower", tower, "--projector", projector) == 2
    assert "learned on other projectors" in capfd.readouterr().err
    words.write_text('[scores.quality]\nkind = "quality"\npairs = [["Good photo.", "Bad photo."]]\n')
    assert export(words, "--tower", other) == 0
    assert learn("--prompts", words, "--seed", "7") == 0  # as if stopped between its two files: prompts of before
    again, learned = prompts.read_text(), prompts.with_name("coop.safetensors").read_bytes()
    assert learn("--prompts", words, "--seed", "8") == 0
    prompts.with_name("coop.safetensors").write_bytes(learned)
    assert prompts.read_text() != again
    capfd.readouterr()
    assert export(prompts, "--tower", tower) == 2
    assert "cannot be read" in capfd.readouterr().err


def test_a_folder_is_one_runs(learn: Callable[..., int], tmp_path: Path, capfd: Any) -> None:
    with sole(tmp_path / "run", World(), print):
        assert learn() == 2
    assert "is in use by another run" in capfd.readouterr().err
    assert learn() == 0


def test_too_few_photos_are_told_before_any_is_read(learn: Callable[..., int], tmp_path: Path, capfd: Any) -> None:
    assert learn("--validation", "0.001") == 2
    assert "Give more photos" in capfd.readouterr().err
    assert not (tmp_path / "run" / "features").exists()


def test_photos_that_were_done_are_not_done_again(
    learn: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped in its third part has two; what follows is the same as without the stop."""
    from declip_training import rated_features

    monkeypatch.setattr(rated_features, "PART", 20)
    assert learn() == 0
    whole = (tmp_path / "run" / "coop.safetensors").read_bytes()
    parts = sorted((tmp_path / "run" / "features").iterdir())
    assert len(parts) == 3
    parts[2].unlink()
    before = [part.stat().st_mtime_ns for part in parts[:2]]
    assert learn() == 0
    assert [part.stat().st_mtime_ns for part in parts[:2]] == before
    assert (tmp_path / "run" / "coop.safetensors").read_bytes() == whole


def test_other_scores_of_a_prompts_file_stay(learn: Callable[..., int], tmp_path: Path) -> None:
    words = tmp_path / "words.toml"
    words.write_text(
        'logit_scale = 50\n[scores.light]\nkind = "quality"\npairs = [["Good light.", "Bad light."]]\n'
        '[scores.brightness]\nkind = "degree"\ndescription = "how \\"bright\\" \\\\ é"\n'
        'pairs = [["Bright photo.", "Dark photo."], ["Light.", "Dim."]]\n'
    )
    assert learn("--prompts", words, "--score", "brightness") == 0
    from declip_training.model.prompts import PromptSet

    before, after = PromptSet.read(words), PromptSet.read(tmp_path / "run" / "prompts.toml")
    assert after.specs() == before.specs()
    assert after.logit_scale == 50.0
    assert [s.context is None for s in after.scores] == [True, False]


def test_unreadable_photos_are_counted(learn: Callable[..., int], ratings: Path, tmp_path: Path, capfd: Any) -> None:
    rows = rows_of(ratings)
    (tmp_path / rows[4]["image"]).write_bytes(b"no picture")
    (tmp_path / rows[9]["image"]).unlink()
    assert learn() == 2
    message = capfd.readouterr().err
    assert "2 of 60 photos cannot be read" in message
    assert "--skip-unreadable" in message
    assert not (tmp_path / "run" / "prompts.toml").exists()
    assert learn("--skip-unreadable") == 0
    assert "2 of 60 photos cannot be read and are left out" in capfd.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["photos"], report["unreadable"]) == (58, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [{**r, "score": "nan"} if i == 2 else r for i, r in enumerate(rows)], "row 3 of"),
        (lambda rows: [{**r, "score": "good"} if i == 2 else r for i, r in enumerate(rows)], "'good'"),
        (lambda rows: [*rows, rows[1]], "rows 2 and 61"),
        (lambda rows: [{**r, "score": "3"} for r in rows], "have the score 3"),
        (lambda rows: rows[:9], "has 9 rated photos"),
        (lambda rows: [{"image": r["image"], "mos": r["score"]} for r in rows], "no column 'score'"),
    ],
)
def test_tables_that_cannot_be_learned_from(
    learn: Callable[..., int], ratings: Path, tmp_path: Path, capfd: Any, change: Any, message: str
) -> None:
    assert learn(table=write(tmp_path / "changed.csv", change(rows_of(ratings)))) == 2
    shown = capfd.readouterr()
    assert message in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--score", "beauty"], "no score 'beauty'"),
        (["--data", "koniq=x"], "either as --data"),
        (["--tokens", "0"], "at least one token"),
        (["--tokens", "15"], "leaves no room for words. Use at most 13"),
        (["--tokens", "13"], "Use 1 to 1 with this tower"),
        (["--words", " "], "no words to start from"),
        (["--seed", "-1"], "the seed is -1"),
        (["--plcc", "-1"], "the weight of PLCC is -1.0"),
        (["--plcc", "nan"], "the weight of PLCC is nan"),
        (["--scale", "0"], "above 0 and at most 1000"),
        (["--scale", "2000"], "above 0 and at most 1000"),
        (["--allow-missing"], "--allow-missing is for --data"),
        (["--validation", "1"], "between 0 and 1"),
        (["--projector", "none.safetensors"], "none.safetensors"),
    ],
)
def test_wrong_use(learn: Callable[..., int], tmp_path: Path, capfd: Any, extra: list[str], message: str) -> None:
    assert learn(*extra) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists(), "known before any photo is read"


def test_held_out_photos_with_one_opinion_choose_nothing(
    learn: Callable[..., int], ratings: Path, tmp_path: Path, capfd: Any
) -> None:
    from declip_training.opinions import read_table

    held = read_table(ratings).held_out(0.3)
    changed = [{**row, "score": "3"} if out else row for row, out in zip(rows_of(ratings), held, strict=True)]
    assert learn(table=write(tmp_path / "changed.csv", changed)) == 2
    assert "that are held out all have the same score" in capfd.readouterr().err
    assert not (tmp_path / "run" / "prompts.toml").exists()


def test_a_data_set_without_its_test_split(tower: Path, tmp_path: Path, capfd: Any) -> None:
    folder = tmp_path / "koniq"
    (folder / "1024x768").mkdir(parents=True)
    rng = np.random.default_rng(1)
    rows = []
    for index in range(40):
        pixels = np.clip(rng.normal(20 + 5 * index, 12, (48, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "1024x768" / f"{index}.jpg")
        split = ("training", "validation", "test")[index % 3]
        rows.append({"image_name": f"{index}.jpg", "MOS": 10 + 2 * index, "SD": 1, "set": split})
    write(folder / "koniq10k_distributions_sets.csv", rows)
    command = ["coop", "--tower", tower, "--pretrained", "random", "--data", f"koniq={folder}", "-o", tmp_path / "run"]
    assert run([*map(str, command), *["--tokens", "2", "--steps", "20", "--validation", "0.3", "--threads", "1"]]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["photos"] == 27
    assert "validation and train" in report["opinions"]
    (folder / "1024x768" / "0.jpg").unlink()
    capfd.readouterr()
    usual = ["--tokens", "2", "--steps", "20", "--validation", "0.3", "--threads", "1"]
    assert run([*map(str, command), *usual]) == 2
    assert "--allow-missing" in capfd.readouterr().err
    assert run([*map(str, command), *usual, "--allow-missing"]) == 0
    assert "1 of 27 images are not on disk and are left out" in capfd.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["photos"], report["missing"]) == (26, 1)


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing_half(
    ratings: Path, tower: Path, tmp_path: Path, on_full_disk: Callable[..., Any]
) -> None:
    """60 features of 64 bytes do not fit into 2 kB."""
    command = [*DECLIP, "coop", "--tower", str(tower), "--pretrained", "random", "--ratings", str(ratings)]
    command += ["-o", str(tmp_path / "run"), "--tokens", "2", "--steps", "5", "--validation", "0.3", "--threads", "1"]
    result = on_full_disk(command, 2 * 1024)
    assert result.returncode == 2
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("declip: ")]
    assert f"cannot write {tmp_path / 'run' / 'features' / '00000.safetensors'}" in line
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["lock"]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_file_in_place_of_the_folder(learn: Callable[..., int], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "run").write_text("mine")
    assert learn() == 2
    assert f"cannot write {tmp_path / 'run'}" in capfd.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"
