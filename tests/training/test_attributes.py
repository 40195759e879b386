"""Attributes: what moves them, what a pair of prompts must satisfy, and how selective it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageStat
from skimage import data
from torch import Tensor
from torch.nn import functional as F

from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.attributes import ChangeLadders, attribute_loss, percentiles, selectivity
from declip_training.coop import CoopConfig
from declip_training.data.attributes import ATTRIBUTES, CHANGES, MEASURED, measure
from declip_training.data.distortions import Pixels
from declip_training.model.declip import DeCLIP
from declip_training.model.prompts import PromptSet, ScorePrompts
from declip_training.model.text_encoding import encode_texts
from declip_training.recipes.nano_attributes import KINDS, SEVERITIES, ladder_features, learn_attributes
from declip_training.recipes.nano_result import NanoResult

BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}
SEVERITY = torch.tensor((0.0, *SEVERITIES))
DIM = 8


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.asarray(Image.fromarray(data.astronaut()).resize((96, 96)))


@pytest.mark.parametrize("name", MEASURED)
def test_changes_move_what_is_measured_in_their_direction(name: str, photo: Pixels) -> None:
    for kind, sign in BY_NAME[name].moved_by.items():
        rungs = [photo, *(CHANGES[kind](photo, s, np.random.default_rng(0)) for s in SEVERITIES)]
        values = np.array([measure(rung)[name] for rung in rungs])
        assert (np.diff(sign * values) > 0).all(), kind


def test_contrast_of_lightness_alone_leaves_colours(photo: Pixels) -> None:
    """Unlike contrast of all channels, which fades colours or strengthens them and so is no sin of colorfulness."""
    colorfulness = BY_NAME["colorfulness"]
    before = measure(photo)
    for plain, light in (("low contrast", "flatter lightness"), ("high contrast", "harder lightness")):
        changed, left = (measure(CHANGES[k](photo, 0.5, np.random.default_rng(0))) for k in (plain, light))
        moved = {name: abs(left[name] - before[name]) / before[name] for name in MEASURED}
        assert moved["contrast"] > 0.2
        assert moved["colorfulness"] < 0.1
        assert abs(changed["colorfulness"] - before["colorfulness"]) / before["colorfulness"] > 0.2
        assert not colorfulness.left_by(plain)
        assert colorfulness.left_by(light)
        assert not BY_NAME["contrast"].left_by(light)
        assert BY_NAME["contrast"].left_by("pale")


def test_what_may_move_an_attribute_is_no_stray() -> None:
    colorfulness = BY_NAME["colorfulness"]
    pairs = torch.eye(DIM)[:2][None]
    kinds = np.array(["pale", "vivid", "low contrast", "jpeg"])
    embedded = torch.zeros(4, len(SEVERITY), DIM)
    for row, far in enumerate((-1.0, 1.0, 3.0, 0.1)):
        embedded[row, :, 0] = 0.3 * row + far * SEVERITY
    ladders = ChangeLadders(embedded, kinds, SEVERITY, {})
    spread = embedded[:, 0, 0].numpy().std() * 1.0
    found = selectivity(ladders, colorfulness, pairs, 1.0)
    assert found["strays"] == pytest.approx(0.1 / embedded[:, 0, 0].std(unbiased=False).item(), rel=1e-3)
    assert found["moved"] == pytest.approx(1.0 / spread, rel=1e-3)


def test_sharpening_sharpens_and_every_change_keeps_the_shape(photo: Pixels) -> None:
    def edges(pixels: Pixels) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=0)).mean())

    sharpened = [edges(CHANGES["sharpened"](photo, s, np.random.default_rng(0))) for s in SEVERITIES]
    assert edges(photo) < sharpened[0]
    assert (np.diff(sharpened) > 0).all()
    for kind, change in CHANGES.items():
        changed = change(photo[:61], 0.5, np.random.default_rng(0))
        assert (changed.shape, changed.dtype) == ((61, 96, 3), np.uint8), kind


def test_measures_agree_with_pillow_and_grey_has_no_colour(photo: Pixels) -> None:
    grey = np.repeat(np.asarray(Image.fromarray(photo).convert("L"))[..., None], 3, axis=2)
    stat = ImageStat.Stat(Image.fromarray(photo).convert("L"))
    assert measure(photo)["brightness"] == pytest.approx(stat.mean[0] / 255, abs=2e-3)
    assert measure(photo)["contrast"] == pytest.approx(stat.stddev[0] / 255, abs=2e-3)
    assert measure(grey)["colorfulness"] == pytest.approx(0, abs=1e-9)
    assert measure(photo)["colorfulness"] > 0.05


def _ladders(photos: int = 30, dim: int = DIM) -> ChangeLadders:
    """Each attribute has an axis of its own along which its kinds move; photos differ a little."""
    rng = np.random.default_rng(0)
    kinds = np.array([KINDS[i % len(KINDS)] for i in range(photos * len(KINDS))])
    embedded = torch.from_numpy(rng.normal(0, 0.05, (len(kinds), 1, dim))).float().repeat(1, len(SEVERITY), 1)
    for axis, attribute in enumerate(ATTRIBUTES):
        sign = torch.tensor([float(attribute.moved_by.get(str(kind), 0)) for kind in kinds])
        embedded[..., axis] += 0.3 * sign[:, None] * SEVERITY
    embedded[..., -1] += 1.0
    return ChangeLadders(F.normalize(embedded, dim=-1), kinds, SEVERITY, {})


def _pair(axis: int, sign: float = 1.0, other: int | None = None) -> Tensor:
    direction = torch.zeros(DIM)
    direction[axis] = sign
    if other is not None:
        direction[other] = 2.0
    middle = torch.zeros(DIM)
    middle[-1] = 1.0
    return F.normalize(torch.stack([middle + direction, middle - direction]), dim=-1)[None]


@pytest.mark.parametrize("axis", range(len(ATTRIBUTES)))
def test_a_pair_along_its_axis_is_selective(axis: int) -> None:
    ladders, attribute = _ladders(), ATTRIBUTES[axis]
    right = selectivity(ladders, attribute, _pair(axis), 20.0)
    assert right["own"] == pytest.approx(1.0)
    assert right["strays"] < 0.5 * right["moved"]
    inverted = selectivity(ladders, attribute, _pair(axis, -1.0), 20.0)
    assert inverted["own"] == pytest.approx(-1.0)
    assert inverted["choice"] < right["choice"]
    elsewhere = selectivity(ladders, attribute, _pair(axis, other=(axis + 1) % len(ATTRIBUTES)), 20.0)
    assert elsewhere["strays"] > elsewhere["moved"]


@pytest.mark.parametrize("axis", range(len(ATTRIBUTES)))
def test_the_loss_prefers_the_right_direction_to_its_reverse_and_to_one_that_strays(axis: int) -> None:
    loss = attribute_loss(_ladders(), ATTRIBUTES[axis], 20.0, each=20)
    right = loss(_pair(axis), 1)
    assert right < loss(_pair(axis, -1.0), 1)
    assert right < loss(_pair(axis, other=(axis + 1) % len(ATTRIBUTES)), 1)


def test_the_loss_orders_photos_by_what_is_measured() -> None:
    ladders = _ladders()
    axis = list(BY_NAME).index("brightness")
    measured = ladders.embedded[:, 0, axis].clone()
    up = ChangeLadders(ladders.embedded, ladders.kinds, SEVERITY, {"brightness": measured})
    down = ChangeLadders(ladders.embedded, ladders.kinds, SEVERITY, {"brightness": -measured})
    first, second = (attribute_loss(one, ATTRIBUTES[axis], 20.0)(_pair(axis), 1) for one in (up, down))
    assert first < second - 1.0


def test_percentiles_are_ranks() -> None:
    assert percentiles(np.array([0.3, 0.1, 0.2, 0.2])).tolist() == [0.875, 0.125, 0.5, 0.5]


def test_ladder_features_are_made_once_and_in_order(photo: Pixels, tmp_path: Path) -> None:
    calls = []

    def encode(pixels: Pixels) -> Tensor:
        calls.append(len(pixels))
        return torch.from_numpy(pixels.reshape(len(pixels), -1)[:, :DIM].astype(np.float32))

    path = tmp_path / "features.safetensors"
    first = ladder_features([photo, photo[:64, :64]], 32, encode, path, lambda line: None)
    assert first.features.shape == (2 * len(KINDS), len(SEVERITY), DIM)
    assert calls == [len(SEVERITY)] * 2 * len(KINDS)
    again = ladder_features([photo, photo[:64, :64]], 32, encode, path, lambda line: None)
    assert len(calls) == 2 * len(KINDS)
    ladders = again.through(torch.nn.Identity())
    assert ladders.kinds.tolist() == [*KINDS, *KINDS]
    assert torch.allclose(ladders.embedded.norm(dim=-1), torch.ones(len(ladders.kinds), len(SEVERITY)))
    assert ladders.measured["contrast"][0] != ladders.measured["contrast"][-1]


def test_contexts_learn_attributes_and_only_selective_ones_are_offered(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    ladders = _ladders(photos=12, dim=32)
    config = CoopConfig(steps=40, check_every=20, lr=2e-2)
    offered, card = learn_attributes(clip, tokenizer, ladders, ladders, 20.0, lambda name: lambda line: None, config)
    assert [name.split(",")[0] for name in card if name.endswith(", words")] == list(BY_NAME)
    for name, attribute in BY_NAME.items():
        words = selectivity(ladders, attribute, encode_texts(clip, tokenizer, attribute.pair)[None], 20.0)
        assert card[f"{name}, words"]["choice"] == pytest.approx(words["choice"], abs=1e-3)
        if f"{name}, learned" in card:
            assert card[f"{name}, learned"]["choice"] > words["choice"], name
    proven = [n.split(",")[0] for n, c in card.items() if c["own"] >= 0.95 and 2 * c["strays"] <= c["moved"]]
    assert [prompts.spec.name for prompts in offered] == proven
    assert proven  # a random text tower of width 32 reaches some of the six axes


def test_words_that_suffice_need_no_context(tiny_clip: Any) -> None:
    clip, tokenizer, _ = tiny_clip
    attribute = ATTRIBUTES[0]
    axis = F.normalize(encode_texts(clip, tokenizer, attribute.pair).diff(dim=0)[0], dim=-1)
    ladders = _ladders(photos=12, dim=32)
    own = torch.tensor([float(attribute.moved_by.get(str(kind), 0)) for kind in ladders.kinds])
    moved = torch.randn(len(own), 1, 32, generator=torch.Generator().manual_seed(0)) * 0.05
    moved = moved - 0.5 * own[:, None, None] * SEVERITY[:, None] * axis
    along = ChangeLadders(F.normalize(moved + 1, dim=-1), ladders.kinds, SEVERITY, {})
    config = CoopConfig(steps=2, check_every=2)
    offered, card = learn_attributes(clip, tokenizer, along, along, 20.0, lambda name: lambda line: None, config)
    assert offered[0].spec.name == attribute.name
    assert offered[0].context is None
    assert f"{attribute.name}, learned" not in card


def test_a_result_can_offer_some_of_its_scores(tiny_clip: Any) -> None:
    clip, tokenizer, preprocess = tiny_clip
    texts = {"one": 1, "two": 2, "three": 1}
    specs = tuple(
        ScoreSpec(name, "quality", tuple((f"good {name} {i}", f"bad {name} {i}") for i in range(count)))
        for name, count in texts.items()
    )
    prompts = PromptSet(tuple(ScorePrompts(s) for s in specs))
    declip = DeCLIP.from_clip(clip, tokenizer, prompts)
    whole = NanoResult(declip, preprocess, specs, prompts, {}, np.zeros((1, 48, 48, 3), np.uint8), {})
    part = whole.offering(["three", "two"])
    embedded = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert [spec.name for spec in part.scores] == ["two", "three"]
    assert torch.allclose(part.declip.scores(embedded), declip.scores(embedded)[:, 1:])
    assert declip.averaging.shape == (4, 3)
    offered = PromptSet(tuple(ScorePrompts(s) for s in specs if s.name != "one"))
    assert part.provenance()["prompts_sha256"] == offered.sha256() != whole.provenance()["prompts_sha256"]
