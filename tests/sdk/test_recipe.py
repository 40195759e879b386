"""``declip recipe nano``: the whole way from clones of public data to an engine that says what it was made from."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from declip_runtime.engine_file import EngineFile
from declip_runtime.machine import commit
from declip_runtime.scorer import Scorer
from declip_sdk.cli import run
from declip_training.data.attributes import ATTRIBUTES
from declip_training.evaluation.camera_noise import CameraNoise, Share
from declip_training.evaluation.judges import Judgement
from declip_training.evaluation.selectivity import Selectivity
from declip_training.model.checkpoint import load_projectors
from declip_training.recipes import nano, nano_attributes

from . import nano_world

LADDERS = {"mean": 0.5}
JUDGED = Judgement(
    {}, "quality", 3, True, LADDERS, LADDERS, LADDERS, LADDERS, CameraNoise(Share(0.5, 6, 3), (0.1, 0.9), {}, {}),
    Selectivity((), ()),
)  # fmt: skip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As small as everything is here, threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("missing", ["torch", "scipy"])
def test_without_the_extra_it_is_named(missing: str, tmp_path: Path) -> None:
    program = (
        f"import sys\nsys.modules[{missing!r}] = None\nfrom declip_sdk.cli import run\n"
        f"sys.exit(run(['recipe', 'nano', '--data', {str(tmp_path)!r}, '-o', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "declip: The recipe needs torch, open_clip and SciPy. Run: pip install 'declip-sdk[recipe]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_data_that_is_missing_is_named_before_the_training(tmp_path: Path, capfd: Any) -> None:
    assert run(["recipe", "nano", "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert "polyu" in error
    assert error.count("\n") == 1


def test_a_device_that_is_not_there_is_named(tmp_path: Path, capfd: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    data = nano_world.make_data(tmp_path / "data")
    assert run(["recipe", "nano", "--data", str(data), "-o", str(tmp_path / "out"), "--device", "cuda"]) == 2
    error = capfd.readouterr().err
    assert "there is no device 'cuda'" in error
    assert error.count("\n") == 1


def test_a_ledger_that_cannot_be_written_is_named_before_the_training(tmp_path: Path, capfd: Any) -> None:
    data = nano_world.make_data(tmp_path / "data")
    arguments = ["recipe", "nano", "--data", str(data), "-o", str(tmp_path / "out"), "--ledger", str(tmp_path)]
    assert run(arguments) == 2
    assert f"the ledger {tmp_path} cannot be written" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_was_stopped_goes_on_to_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    data, out = nano_world.make_data(tmp_path / "data"), tmp_path / "out"
    nano_world.shrink(monkeypatch, tmp_path)
    monkeypatch.setattr("declip_training.evaluation.judges.judge_engine", lambda path, sources: JUDGED)  # tested alone
    arguments = ["recipe", "nano", "--data", str(data), "-o", str(out), "--steps", "2", "--note", "a miniature"]
    with monkeypatch.context() as stopped:
        stopped.setattr(nano, "train_projectors", _interrupt)
        assert run(arguments) == 130
    assert not list(out.glob("*.engine"))
    # All six pass on Kodak's ladders, and none is judged selective.
    monkeypatch.setattr(nano_attributes, "_proven", lambda found: True)
    monkeypatch.setattr(nano, "pretrain", None)  # the tower is there: calling it would fail
    assert run(arguments) == 0
    captured = capfd.readouterr()
    (path,) = out.glob("*.engine")
    engine = EngineFile.open(path)
    assert path.name == "declip-nano.engine"
    assert captured.out.endswith(f"id {engine.id}\n")
    dropped = ", ".join(attribute.name for attribute in ATTRIBUTES)
    assert f"not offered, because other ladders move them too: {dropped}" in captured.err
    page = (out / "judges.md").read_text(encoding="utf-8")
    assert f"| judged and not offered | {dropped} |" in page
    assert f"| engine id | {engine.id} |" in page
    _check_provenance(engine, data, out)
    _check_record(engine, out)
    photos = sorted((data / "BIQ2021" / "Images").glob("ss03 (Test *"), key=lambda p: int(p.stem.split()[-1][:-1]))
    with Scorer(engine.path, precision="fp32") as scorer:
        quality = scorer.score(photos).quality
    assert quality[-1] > quality[0]  # people liked bright ones, and so does it


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _check_provenance(engine: EngineFile, data: Path, out: Path) -> None:
    """Hashes of what it was made from, with the names that ``declip export`` gives them."""
    made = engine.manifest.provenance
    (path,) = out.glob("tower-*/projectors.safetensors")
    projectors, whole = load_projectors(path), load_projectors(out / "declip-nano.safetensors")
    assert made["recipe"] == "declip recipe nano"
    assert made["commit"] == commit()
    assert (made["tower_sha256"], made["projector_sha256"]) == (projectors.tower_sha256, projectors.sha256)
    assert whole.prompts is not None
    assert len(whole.prompts.scores) == 1 + len(ATTRIBUTES)
    assert made["prompts_sha256"] == replace(whole.prompts, scores=whole.prompts.scores[:1]).sha256()
    trained = made["pretraining"]
    assert (trained["steps"], trained["seed"], trained["crops"]) == (2, 7, [[1.0, nano_world.SMALLER]])
    assert trained["commit"] == commit()
    counts = {name: part["photos"] for name, part in made["data"].items()}
    assert counts == {
        "BIQ2021 Train, fit": 486, "BIQ2021 Train, validation": 54, "clean photos": 1020, "Kodak": 3,
        "Flickr8k without Test": nano_world.CAPTIONED,
    }  # fmt: skip
    kodak = [data / "codec-corpus" / "kodak" / f"{i:04}.png" for i in range(3)]
    named = "".join(f"{path.name}:{path.stat().st_size};" for path in kodak)
    assert made["data"]["Kodak"]["sha256"] == hashlib.sha256(named.encode()).hexdigest()
    assert made["card"] == json.loads((out / "card.json").read_text(encoding="utf-8"))


def _check_record(engine: EngineFile, out: Path) -> None:
    """The look at Test is in the ledger, and its numbers are in the card and the manifest."""
    with (out / "biq2021_test.csv").open(newline="", encoding="utf-8") as stream:
        (look,) = csv.DictReader(stream)
    assert (look["engine_id"], look["note"], look["n"]) == (engine.id[:16], "a miniature", "18")
    (score,) = engine.manifest.scores
    assert score.validated is not None
    assert score.validated.srcc == float(look["mean"])
    assert f"their mean {look['mean']}." in engine.manifest.provenance["model_card"]
