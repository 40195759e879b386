"""``declip export`` from the command line, on a tower small enough for a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from declip_export.parity import main as parity_main
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import ExportError
from declip_sdk.cli import run
from declip_training.model.checkpoint import ProjectorCheckpoint, save_projectors, tower_sha256
from declip_training.model.projector import Projector
from declip_training.model.tower import load_clip

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = '[scores.quality]\nkind = "quality"\npairs = [["Good photo.", "Bad photo."]]\n'


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "cli-tower.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def weights(tower: Path) -> Path:
    model, _, _ = load_clip(str(tower), "random", seed=3)
    path = tower.with_name("weights.safetensors")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def test_all_options(tower: Path, weights: Path, tmp_path: Path, capsys: Any) -> None:
    clip, _, _ = load_clip(str(tower), weights)
    generator = torch.Generator().manual_seed(0)
    projectors = [Projector(16, 24, form).randomize(generator) for form in ("between", "before")]
    digest = save_projectors(
        tmp_path / "p.safetensors", ProjectorCheckpoint("cli-tower", "x", tower_sha256(clip.visual), *projectors)
    )
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    photos = tmp_path / "photos" / "deep"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(photos / f"{i}.jpg")
    (photos / "3-broken.jpg").write_bytes(b"not a picture")
    out = tmp_path / "model.engine"
    arguments = ["--tower", str(tower), "--pretrained", str(weights), "--projector", str(tmp_path / "p.safetensors")]
    arguments += ["--prompts", str(tmp_path / "prompts.toml"), "-o", str(out)]
    arguments += ["--int8", str(tmp_path / "photos"), "--fp8", str(tmp_path / "photos")]
    assert run(["export", *arguments, "--semantic", "--name", "mine"]) == 0
    shown = capsys.readouterr()
    assert "model.engine" in shown.out
    assert "peak memory" in shown.out
    for stage in (
        "loading",
        "tracing",
        "beyond FP16",
        "calibrating INT8 with 8 photos",
        "FP8",
        "writing the engine",
        "in all",
    ):
        assert stage in shown.err
    assert f"1 of 10 photos below {tmp_path / 'photos'} cannot be read and were skipped" in shown.err
    assert "3-broken.jpg" in shown.err
    manifest = EngineFile.open(out).manifest
    assert manifest.name == "mine"
    assert manifest.score_names == ("quality",)
    assert set(manifest.graphs) == {"fp32", "fp16", "int8", "int8-fp16", "fp8"}
    assert manifest.provenance["projector_sha256"] == digest
    assert manifest.provenance["tower"] == "cli-tower"
    assert manifest.provenance["pretrained"] == "weights.safetensors"
    assert [r["images"] for r in manifest.provenance["parity"] if r["subject"].endswith("int8")] == [1, 1]
    for graph in ("fp16", "int8-fp16", "fp8"):
        assert f"{graph} graph, emulated: scores within" in shown.err
    assert "stay FP32" not in shown.err, "nothing was kept"


def test_values_that_fp16_cannot_hold_are_named(tower: Path, tmp_path: Path, capsys: Any) -> None:
    model, _, _ = load_clip(str(tower), "random", seed=3)
    with torch.no_grad():  # all that is added to the residual stream, which each LayerNorm brings back to size
        visual = model.visual
        for module in (
            visual.ln_pre,
            visual.transformer.resblocks[0].attn.out_proj,
            visual.transformer.resblocks[0].mlp.c_proj,
        ):
            module.weight *= 5e4
            module.bias *= 5e4
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "large.safetensors")
    arguments = ["--tower", str(tower), "--pretrained", str(tmp_path / "large.safetensors")]
    assert run(["export", *arguments, "-o", str(tmp_path / "x.engine")]) == 0
    shown = capsys.readouterr().err
    assert "fp16 graph: FP16 cannot hold these, they stay FP32: " in shown
    assert "(overflow, up to" in shown
    assert " more" in shown
    assert run(["export", *arguments, "--no-fp16", "-o", str(tmp_path / "y.engine")]) == 0
    assert "stay FP32" not in capsys.readouterr().err
    assert set(EngineFile.open(tmp_path / "y.engine").manifest.graphs) == {"fp32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8", "a", "--fp8", "b"], "Name one folder for both"),
        (["--fp8", "a", "--no-fp16"], "--fp8 needs FP16 around it"),
        (["--photos", "a", "--int8", "a"], "what calibrates cannot judge"),
        (["--photos", "a", "--no-parity"], "--no-parity leaves out what --photos are for"),
    ],
)
def test_options_that_do_not_go_together(capsys: Any, tmp_path: Path, options: list[str], message: str) -> None:
    arguments = ["--tower", "ViT-B-32", "--pretrained", "random", *options, "-o", str(tmp_path / "x.engine")]
    assert run(["export", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_int8_is_judged_on_photos_that_did_not_calibrate_it(tower: Path, tmp_path: Path, monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    given: dict[str, Any] = {}

    def record(*_: Any, **options: Any) -> Any:
        given.update(options)
        raise ExportError("seen enough. Run: true")

    monkeypatch.setattr("declip_export.engine.export_engine", record)
    arguments = ["--tower", str(tower), "--pretrained", "random", "--int8", str(tmp_path)]
    assert run(["export", *arguments, "-o", str(tmp_path / "x.engine")]) == 2
    calibrating, judging = ({photo.tobytes() for photo in given[n]} for n in ("int8_images", "parity_images"))
    assert (len(calibrating), len(judging)) == (16, 4)
    assert not calibrating & judging
    assert run(["export", *arguments, "--no-parity", "-o", str(tmp_path / "x.engine")]) == 2
    assert (len(given["int8_images"]), given["parity_images"]) == (20, None)
    (tmp_path / "own").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "own" / f"{i}.png")
    own = ["--photos", str(tmp_path / "own")]
    assert run(["export", *arguments[:4], *own, "-o", str(tmp_path / "x.engine")]) == 2
    assert (given["int8_images"], len(given["parity_images"])) == (None, 2)


def test_zero_shot_default_prompts_are_not_validated(tower: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip.engine"
    assert run(["export", "--tower", str(tower), "--pretrained", "random", "--no-parity", "-o", str(out)]) == 0
    manifest = EngineFile.open(out).manifest
    assert len(manifest.scores) == 12
    assert all(s.validated is None and s.calibration is None for s in manifest.scores)
    assert manifest.provenance["projector_sha256"] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--tower": "ViT-B-33"}, "no tower 'ViT-B-33'"),
        ({"--pretrained": "nonsense"}, "neither a file nor a pretrained tag"),
        ({"--projector": "missing.safetensors"}, "missing.safetensors cannot be read"),
        ({"--prompts": "missing.toml"}, "missing.toml cannot be read"),
        ({"-o": "no/such/folder/x.engine"}, "does not exist"),
        ({"-o": "."}, "is a folder"),
        ({"--int8": "8-photos"}, "8 photos below 8-photos can be used, 9 are needed"),
    ],
)
def test_errors_are_one_line(
    tower: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, changed: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "8-photos").mkdir()
    for i in range(8):
        Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / "8-photos" / f"{i}.png")
    options = {"--tower": str(tower), "--pretrained": "random", "-o": "x.engine", **changed}
    assert run(["export", *(part for pair in options.items() for part in pair)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("declip: ")
    assert message in last


@pytest.mark.parametrize("output", ["no/such/folder/x.engine", ".", "", "/", "/proc/x.engine", "x" * 300])
def test_a_place_that_takes_no_engine_is_told_before_any_work(
    tmp_path: Path, capsys: Any, monkeypatch: Any, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", "--tower", "ViT-B-32", "--pretrained", "random", "-o", output]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("declip: ")
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_an_engine_is_made_of_is_not_overwritten(tower: Path, weights: Path, tmp_path: Path, capsys: Any) -> None:
    usual = ["export", "--tower", str(tower), "--pretrained", str(weights)]
    for read in (tower, weights):
        before = read.read_bytes()
        assert run([*usual, "-o", str(read)]) == 2
        assert "is read here and will not be overwritten" in capsys.readouterr().err
        assert read.read_bytes() == before


def test_a_full_disk_names_the_place(tower: Path, tmp_path: Path, on_full_disk: Any) -> None:
    """Not standard output, which would be as good a guess for a library's nameless error."""
    command = [sys.executable, "-m", "declip_sdk", "export", "--tower", str(tower), "--pretrained", "random"]
    done = on_full_disk([*command, "--no-parity", "-o", str(tmp_path / "x.engine")], 100 * 1024)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("declip: cannot write"), done.stderr
    assert str(tmp_path) in last
    assert list(tmp_path.iterdir()) == []


def test_parity_command_prints_markdown(tower: Path, capsys: Any) -> None:
    assert parity_main(["--tower", str(tower), "--images", "4", "--weights", "float32"]) == 0
    shown = capsys.readouterr().out
    assert "perceptual 'between'" in shown
    assert "semantic 'before'" in shown
    assert "| exact met |" in shown
    assert "| half met |" in shown
    assert "MISSED" not in shown
