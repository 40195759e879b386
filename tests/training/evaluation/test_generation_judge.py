"""The models that measure: embeddings, cosines and quality scores, recomputed by other means."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sdk.command import TINY
from sdk.generation_world import World, build, embed, embed_words, write_checkpoint, write_scorer

from declip_runtime.errors import (
    BackendExecutionError,
    CheckpointError,
    EngineNotFoundError,
    ImageError,
    TrainingError,
    UsageError,
)
from declip_runtime.scorer import Scorer
from declip_runtime.scores import Score
from declip_training.evaluation.generation.conditions import read_conditions
from declip_training.evaluation.generation.judge import Judge
from declip_training.evaluation.generation.measures import Measures, Target, measure
from declip_training.evaluation.generation.quality import QualityScorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("judge") / "world")


@pytest.fixture(scope="module")
def judge(world: World) -> Judge:
    return Judge.load(world.checkpoint, CPU, str(world.tower), "random")


def test_images_are_embedded_as_open_clip_and_the_projectors_do(world: World, judge: Judge) -> None:
    paths = [world.folder / name for name in ("a.png", "b.png", "sub/c.png")]
    told: list[tuple[int, int]] = []
    found = judge.images(paths * 6, lambda done, total: told.append((done, total)))
    assert told == [(16, 18), (18, 18)]
    for number, path in enumerate(paths):
        perceptual, semantic = embed(world, path, "perceptual"), embed(world, path, "semantic")
        assert perceptual @ semantic < 0.99  # otherwise a mix-up would not show
        for embedded in found[number::3]:
            np.testing.assert_allclose(embedded.perceptual, perceptual, atol=2e-5)
            np.testing.assert_allclose(embedded.semantic, semantic, atol=2e-5)


def test_targets_are_the_conditions_in_their_own_space_and_the_images_in_the_other(world: World, judge: Judge) -> None:
    targets = judge.targets(read_conditions(world.conditions))
    a, b = ({s: embed(world, world.folder / f, s) for s in ("perceptual", "semantic")} for f in ("a.png", "b.png"))
    expected = {
        "night": (a["perceptual"], embed_words(world, "a red house"), a["semantic"], None),
        "dog": (embed_words(world, "dark and blurry"), a["semantic"], None, a["perceptual"]),
        "both": (a["perceptual"], b["semantic"], a["semantic"], b["perceptual"]),
    }
    for name, vectors in expected.items():
        target = targets[name]
        found = (target.perceptual, target.semantic, target.look_semantic, target.content_perceptual)
        for one, other in zip(found, vectors, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, atol=2e-5)


def test_measures_are_cosines_and_their_means() -> None:
    def unit(*values: float) -> Any:
        return np.array(values, np.float32) / np.float32(np.linalg.norm(values))

    perceptual, semantic = unit(3, 4, 0), unit(0, 0, 1)
    target = Target(unit(1, 0, 0), unit(0, 1, 1), unit(0, 3, 4), unit(0, 1, 0))
    found = measure(perceptual, semantic, target, 0.5)
    assert found.pc == pytest.approx(0.6)
    assert found.sc == pytest.approx(0.5**0.5)
    assert found.cc == pytest.approx((0.6 + 0.5**0.5) / 2)
    assert found.leak_semantic == pytest.approx(0.8)
    assert found.leak_perceptual == pytest.approx(0.8)
    assert (found.of, found.leak) == (0.5, pytest.approx(0.8))
    one = measure(perceptual, semantic, Target(target.perceptual, target.semantic, unit(0, 4, 3), None), 0.5)
    assert one.leak_perceptual is None
    assert one.leak == pytest.approx(0.6)
    assert Measures(0, 0, 0, None, 0.3).leak == pytest.approx(0.3)


def test_a_checkpoint_of_another_tower_is_refused(world: World, tmp_path: Path) -> None:
    config = json.loads(world.tower.read_text())
    config["vision_cfg"]["layers"] = 1
    other = tmp_path / "other-judge.json"
    other.write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"trained on tiny-judge \(random\); other-judge with the weights given is"
    ):
        Judge.load(world.checkpoint, CPU, str(other), "random")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(CheckpointError, match="cannot be read as projectors"):
        Judge.load(tmp_path / "x.safetensors", CPU, "ViT-B-32", "random")


def test_embeddings_that_are_no_numbers_are_named(world: World, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "nan.safetensors", world.tower, nan=True)
    judge = Judge.load(tmp_path / "nan.safetensors", CPU, str(world.tower), "random")
    with pytest.raises(TrainingError, match=r"embedding of '.*a\.png' is no direction: it has NaN"):
        judge.images([world.folder / "a.png"])


def test_an_image_that_is_gone_is_named(world: World, judge: Judge) -> None:
    with pytest.raises(ImageError, match=r"gone\.png' does not exist"):
        judge.images([world.folder / "gone.png"])


def test_texts_that_are_too_long_are_counted(judge: Judge) -> None:
    assert judge.count_cut(["a house", "a house " * 30]) == 1


def test_quality_is_the_scorers(world: World, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    paths = [world.folder / "a.png", tmp_path / "broken.png", world.folder / "b.png"]
    found, identity = QualityScorer.of(TINY, "quality", "fake").scores(paths)
    with Scorer(TINY, backend="fake", decode="exact") as scorer:
        expected = scorer.score([paths[0], paths[2]])["quality"]
        engine_id = scorer.engine.id
    assert found[0::2] == pytest.approx(list(expected))
    assert isinstance(found[1], ImageError)
    assert identity["scorer's engine"] == engine_id
    assert (identity["score"], identity["scorer's backend"]) == ("quality", "fake")


def test_the_score_is_the_one_where_higher_is_better(world: World, tmp_path: Path) -> None:
    write_scorer(tmp_path / "x.engine", {"brightness": "degree", "aesthetic": "quality", "sharpness": "quality"})
    write_scorer(tmp_path / "degrees.engine", {"brightness": "degree"})
    assert QualityScorer.of(TINY).score == "quality"
    assert QualityScorer.of(tmp_path / "x.engine").score == "aesthetic"
    assert QualityScorer.of(tmp_path / "x.engine", "sharpness").score == "sharpness"
    with pytest.raises(UsageError, match=r"has no score 'qality'. It gives: brightness, aesthetic, sharpness\."):
        QualityScorer.of(tmp_path / "x.engine", "qality")
    with pytest.raises(UsageError, match=r"'brightness' of .* is a degree: .* Use aesthetic, sharpness"):
        QualityScorer.of(tmp_path / "x.engine", "brightness")
    with pytest.raises(UsageError, match="has no score where higher is better"):
        QualityScorer.of(tmp_path / "degrees.engine")
    with pytest.raises(UsageError, match="generates pictures and scores none"):
        QualityScorer.of(world.engine)
    with pytest.raises(EngineNotFoundError):
        QualityScorer.of(tmp_path / "gone.engine")


def test_a_score_that_is_no_number_is_a_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(*_: object, **__: object) -> Iterator[Score]:
        yield Score(0, "a.png", ("quality",), (math.nan,))

    monkeypatch.setattr(Scorer, "stream", nan)
    (found,), _ = QualityScorer.of(TINY, "quality", "fake").scores([world.folder / "a.png"])
    assert isinstance(found, BackendExecutionError)
