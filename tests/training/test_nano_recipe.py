"""The bundled engine's recipe: what its choices go by, and how it judges its two embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from declip_runtime.errors import TrainingError
from declip_training.data.biq2021 import Rated
from declip_training.data.distortions import DISTORTIONS
from declip_training.data.flickr8k import read_split
from declip_training.evaluation.unseen import UNSEEN
from declip_training.recipes.nano_decoupling import (
    DecouplingFeatures,
    decoupling,
    decoupling_features,
    to_markdown,
)
from declip_training.recipes.nano_validation import ValidationFeatures, ValidationSplit

KINDS = len(UNSEEN)


class Half(nn.Module):
    """The first half of an embedding, or the second."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, dim=-1)[self.second]


class Both(nn.Module):
    """The two halves on top of each other, content more than looks."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return first + 2 * second


def _opinions(scores: npt.NDArray[np.floating]) -> dict[str, float]:
    return {"mean": float(np.corrcoef(scores, np.arange(len(scores)))[0, 1])}


def test_decoupled_embeddings_are_told_from_a_tower_that_mixes() -> None:
    """Looks in the first half of the features, content in the second: each half alone does its own work only."""
    torch.manual_seed(0)
    content, looks = torch.randn(60, 16), torch.randn(60, 16)
    clean = torch.cat([looks, content], 1)
    moved = looks[:20] + 3 * torch.randn(KINDS, 20, 16)
    faulty = torch.cat([moved, content[:20].expand(KINDS, 20, 16)], 2)
    captions = nn.functional.normalize(content, dim=-1)
    rated = torch.cat([torch.linspace(-1, 1, 30)[:, None].expand(30, 16), torch.randn(30, 16)], 1)
    pair = torch.stack([torch.ones(16), -torch.ones(16)])
    heads = {"tower": Both(), "perceptual": Half(False), "semantic": Half(True)}
    table = decoupling(DecouplingFeatures(clean, faulty, captions), rated, _opinions, pair, heads)
    looking, showing = table["perceptual"], table["semantic"]
    assert looking["opinions"] > 0.8
    assert abs(showing["opinions"]) < 0.5
    assert showing["caption of 60"] == showing["caption of 20"] == showing["caption of 20, faulty"] == 1
    assert looking["caption of 60"] < 0.3
    assert showing["moved"] == pytest.approx(0, abs=1e-5)
    assert looking["moved"] > 0.5
    page = to_markdown(table)
    assert "| semantic | " in page
    assert "ghosting" in page
    verdicts = [line.split("|")[-2].strip() for line in page.splitlines() if "=" in line]
    assert verdicts == ["yes"] * 6
    mixed = to_markdown(dict.fromkeys(table, table["tower"]))  # no projectors: nothing is left out
    assert [line.split("|")[-2].strip() for line in mixed.splitlines() if "=" in line][1] == "**no**"


def test_faults_are_made_before_scaling() -> None:
    photos = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    seen: list[npt.NDArray[np.uint8]] = []

    def encode(pixels: npt.NDArray[np.uint8]) -> Tensor:
        seen.append(pixels)
        return torch.zeros(len(pixels), 4)

    def encode_text(texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 4)

    features = decoupling_features(photos, 60, ["a", "b", "c"], encode, encode_text)
    assert features.faulty.shape == (KINDS, 3, 4)
    assert features.captions.shape == (3, 4)
    assert {s.shape for s in seen} == {(3, 60, 60, 3)}
    assert len(np.unique([s.tobytes() for s in seen])) == KINDS + 1


def test_choices_go_by_opinions_and_by_ladders() -> None:
    photos = [Rated(Path(f"{i}.jpg"), float(i), f"ss0{1 + i % 3}") for i in range(30)]
    split = ValidationSplit(photos, np.zeros((30, 8, 8, 3), np.uint8), [])
    # the score is the angle to the pair's direction; one kind of ladders climbs where all others fall
    angles = torch.linspace(1.5, 0.1, 30)
    rated = torch.stack([angles.cos(), angles.sin()], 1)
    falling = torch.linspace(0.1, 1.5, 6)
    ladders = torch.stack([torch.stack([falling.cos(), falling.sin()], 1)] * len(DISTORTIONS))
    ladders[3] = ladders[3].flip(0)
    reached = split.agreement(nn.Identity(), ValidationFeatures(rated, ladders), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert reached["mean"] == 1
    assert reached["worst"] == -1
    assert reached["choice"] == pytest.approx((1 + reached["ladder"]) / 2, abs=1e-4)
    assert reached["ladder"] == pytest.approx((len(DISTORTIONS) - 2) / len(DISTORTIONS), abs=1e-3)


def test_a_missing_list_of_a_split_is_named(tmp_path: Path) -> None:
    names = tmp_path / "Flickr_8k.testImages.txt"
    names.write_text("a.jpg\nb.jpg\n", encoding="utf-8")
    assert read_split(names) == {"a.jpg", "b.jpg"}
    with pytest.raises(TrainingError, match=r"missing\.txt\. It comes with the official captions\."):
        read_split(tmp_path / "missing.txt")
