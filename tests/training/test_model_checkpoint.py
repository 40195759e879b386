"""Projector checkpoints: what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from declip_runtime.errors import CheckpointError
from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.files import replacing
from declip_training.model.checkpoint import (
    ProjectorCheckpoint,
    load_projectors,
    save_projectors,
    tower_probe,
    tower_sha256,
)
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet, ScorePrompts
from declip_training.model.tower import load_clip


@pytest.fixture
def made(tiny_clip: Any) -> ProjectorCheckpoint:
    generator = torch.Generator().manual_seed(0)
    spec = ScoreSpec("quality", "quality", (("Good photo.", "Bad photo."),))
    prompts = PromptSet((ScorePrompts(spec, torch.randn(4, 32, generator=generator)),), 12.5)
    return ProjectorCheckpoint(
        "tiny-train",
        "random",
        tower_sha256(tiny_clip[0].visual),
        Projector(32, 48, "before").randomize(generator),
        Projector(32, 64).randomize(generator),
        prompts,
    )


def test_round_trip(made: ProjectorCheckpoint, tmp_path: Path) -> None:
    digest = save_projectors(tmp_path / "p.safetensors", made)
    loaded = load_projectors(tmp_path / "p.safetensors")
    assert loaded.sha256 == digest
    assert (loaded.tower, loaded.pretrained, loaded.tower_sha256) == ("tiny-train", "random", made.tower_sha256)
    assert (loaded.perceptual.activation, loaded.perceptual.latent) == ("before", 48)
    assert (loaded.semantic.activation, loaded.semantic.latent) == ("between", 64)
    x = torch.randn(3, 32)
    assert torch.equal(loaded.perceptual(x), made.perceptual(x))
    assert torch.equal(loaded.semantic(x), made.semantic(x))
    assert loaded.prompts is not None
    assert made.prompts is not None
    assert loaded.prompts.sha256() == made.prompts.sha256()
    assert loaded.prompts.logit_scale == 12.5


def test_header_is_json_that_says_everything(made: ProjectorCheckpoint, tmp_path: Path) -> None:
    save_projectors(tmp_path / "p.safetensors", made)
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        header = json.loads(file.metadata()["declip"])
    assert header["tower"] == "tiny-train"
    assert header["pretrained"] == "random"
    assert header["perceptual"] == {"dim": 32, "latent": 48, "activation": "before"}
    assert header["prompts"]["scores"]["quality"]["pairs"] == [["Good photo.", "Bad photo."]]
    assert len(header["sha256"]) == 64


def test_tower_is_recognised_by_its_weights(made: ProjectorCheckpoint, tiny_clip: Any, tiny_config: Path) -> None:
    made.require_tower(tiny_clip[0].visual, "tiny-train")
    other, _, _ = load_clip(str(tiny_config), "random", seed=77)
    with pytest.raises(CheckpointError, match="trained on tiny-train"):
        made.require_tower(other.visual, "tiny-train")  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"quick_gelu": True}, {"head_width": 32}])
def test_a_tower_of_another_form_with_the_same_weights_is_another(
    change: dict[str, Any], made: ProjectorCheckpoint, tiny_clip: Any, tiny_config: Path, tmp_path: Path
) -> None:
    visual = tiny_clip[0].visual
    save_projectors(tmp_path / "p.safetensors", replace(made, probe=tower_probe(visual)))
    loaded = load_projectors(tmp_path / "p.safetensors")
    assert len(loaded.probe) == 32
    loaded.require_tower(visual, "tiny-train")
    loaded.require_tower(load_clip(str(tiny_config), "random")[0].visual, "tiny-train")  # type: ignore[arg-type]
    config = json.loads(tiny_config.read_text())
    if "head_width" in change:
        config["vision_cfg"] |= change
    else:
        config |= change
    path = tmp_path / f"form-{'-'.join(change)}.json"
    path.write_text(json.dumps(config))
    other = load_clip(str(path), "random")[0].visual
    assert tower_sha256(other) == made.tower_sha256  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is another tower"):
        loaded.require_tower(other, "form")  # type: ignore[arg-type]
    made.require_tower(other, "form")  # type: ignore[arg-type]  # of before: it does not tell


def test_altered_truncated_and_foreign_files(made: ProjectorCheckpoint, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_projectors(path, made)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match the hash"):
        load_projectors(path)
    path.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as projectors"):
        load_projectors(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(CheckpointError, match="cannot be read as projectors"):
        load_projectors(path)
    with pytest.raises(CheckpointError, match="cannot be read as projectors"):
        load_projectors(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="has no DeCLIP header"):
        load_projectors(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "newer SDK"),
        ({"perceptual": {"dim": 64, "latent": 48, "activation": "before"}}, "does not describe its tensors"),
        ({"perceptual": {"dim": 32, "latent": 48, "activation": "after"}}, "unknown projector form"),
        ({"perceptual": None}, "does not describe its tensors"),
        ({"sha256": "0" * 64}, "do not match the hash"),
    ],
)
def test_header_that_does_not_fit(
    made: ProjectorCheckpoint, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "p.safetensors"
    save_projectors(path, made)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["declip"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors, path, metadata={"declip": json.dumps({**header, **change})})
    with pytest.raises(CheckpointError, match=message):
        load_projectors(path)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_weights_may_be_read_by_those_who_may_read_other_files(tmp_path: Path) -> None:
    """safetensors writes for the owner alone."""
    before = os.umask(0o027)
    try:
        for kept in (False, True):
            with replacing(tmp_path / "new") as partial:
                save_file({"a": torch.zeros(2)}, partial)
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == (0o600 if kept else 0o640)
            (tmp_path / "new").chmod(0o600)
    finally:
        os.umask(before)
