"""Accidents: of all sorts, repeatable, the worse the more severe, and known to every part of training."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from declip_training.data.accidents import accident
from declip_training.data.batches import BatchShape
from declip_training.data.descriptions import distortion_sentences
from declip_training.data.distortions import DISTORTIONS
from declip_training.recipes.nano_settings import BANK_SHAPE, TOWER_SHAPE

PHOTO = data.astronaut()[80:272, 90:311]
SEVERITIES = (0.1, 0.4, 0.7, 1.0)


def rungs(seed: int) -> list[np.ndarray]:
    return [accident(PHOTO, s, np.random.default_rng(seed)) for s in SEVERITIES]


def test_an_accident_keeps_the_form_and_the_photo_and_is_repeatable() -> None:
    before = PHOTO.copy()
    for seed in range(40):
        first, second = (accident(PHOTO, 0.5, np.random.default_rng(seed)) for _ in range(2))
        assert first.shape == PHOTO.shape
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)
    assert np.array_equal(PHOTO, before)


def test_nearly_every_accident_grows_with_its_severity() -> None:
    grows = []
    for seed in range(120):
        moved = [float(np.abs(r.astype(int) - PHOTO).mean()) for r in rungs(seed)]
        grows.append(moved[0] > 0 and bool(np.all(np.diff(moved) > -0.05 * moved[-1])) and moved[-1] > 1.5 * moved[0])
    assert np.mean(grows) > 0.9


def test_accidents_are_of_many_sorts() -> None:
    """Some change few pixels by much, some all by little; some are of colour alone, some move what is there."""
    share, colour, invented = [], [], []
    known = {tuple(c) for c in PHOTO.reshape(-1, 3)}
    for seed in range(120):
        found = accident(PHOTO, 0.6, np.random.default_rng(seed))
        change = found.astype(float) - PHOTO
        share.append((change != 0).any(axis=2).mean())
        grey = np.abs(change.mean(axis=2)).mean()
        colour.append(np.abs(change - change.mean(axis=2, keepdims=True)).mean() / (grey + 1e-6))
        invented.append(np.mean([tuple(c) not in known for c in found[::8, ::8].reshape(-1, 3)]))
    assert np.mean(np.array(share) < 0.3) > 0.1
    assert np.mean(np.array(share) > 0.9) > 0.15
    assert np.mean(np.array(colour) > 1.0) > 0.1
    assert np.mean(np.array(invented) < 0.02) > 0.02


@pytest.mark.parametrize("shape", [(64, 40), (33, 65)])
def test_small_photos_have_accidents_too(shape: tuple[int, int]) -> None:
    small = PHOTO[: shape[0], : shape[1]]
    for seed in range(60):
        assert accident(small, 0.8, np.random.default_rng(seed)).shape == small.shape


def test_a_kind_that_is_left_out_is_in_no_batch_and_no_sentence() -> None:
    shape = BatchShape(ladder_odds={"accident": 0.0})
    assert set(shape.kinds) == set(DISTORTIONS) - {"accident"}
    assert set(TOWER_SHAPE.kinds) == set(BANK_SHAPE.kinds) == set(BatchShape().kinds) == set(DISTORTIONS)
    sentences, index = distortion_sentences(np.random.default_rng(0), shape.kinds)
    everything, full = distortion_sentences(np.random.default_rng(0))
    assert "accident" not in {kind for kind, _ in index}
    assert ("accident", 2) in full
    assert everything[: len(sentences)] == sentences, "a kind that is left out changes no other sentence"
