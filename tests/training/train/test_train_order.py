"""Split, order, rates and crops are pure functions, and sensible ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from declip_runtime.errors import TrainingError
from declip_runtime.manifest import Preprocess
from declip_training.train.crops import RandomCrops
from declip_training.train.schedule import crop_choice, epoch_order, held_out, learning_rate, together
from declip_training.train.settings import TrainSettings

SPEC = Preprocess(size=32, interpolation="bicubic", resize_mode="shortest", mean=(0.5,) * 3, std=(0.5,) * 3)
IDS = [f"record {i}" for i in range(5000)]


def test_a_record_keeps_its_side_of_the_split() -> None:
    chosen = held_out(IDS, 0.1)
    assert 400 < chosen.sum() < 600
    assert (held_out(IDS[::-1], 0.1)[::-1] == chosen).all()
    assert (held_out(IDS, 0.2) >= chosen).all()
    assert not held_out(IDS, 0.0).any()


def test_what_shows_the_same_image_is_on_one_side() -> None:
    images = [f"image {n % 300}" for n in range(len(IDS))]
    sides: dict[str, set[bool]] = {}
    for image, side in zip(images, held_out(together(IDS, images), 0.1), strict=True):
        sides.setdefault(image, set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    assert {True} in sides.values()
    assert {False} in sides.values()
    assert together(IDS, [str(n) for n in range(len(IDS))]) == together(IDS, [""] * len(IDS)) == list(IDS)


def test_epochs_are_different_permutations_that_repeat() -> None:
    rows = np.arange(10, 200)
    first, second = epoch_order(rows, 7, 0), epoch_order(rows, 7, 1)
    assert sorted(first) == sorted(second) == list(rows)
    assert (first != second).any()
    assert (epoch_order(rows, 7, 0) == first).all()
    assert (epoch_order(rows, 8, 0) != first).any()


def test_every_crop_is_shown_in_some_epoch_and_rows_do_not_depend_on_each_other() -> None:
    rows = np.arange(50)
    shown = np.stack([crop_choice(rows, 4, 0, epoch) for epoch in range(60)])
    assert all(set(column) == {0, 1, 2, 3} for column in shown.T)
    assert (crop_choice(np.array([3, 40]), 4, 0, 5) == shown[5, [3, 40]]).all()


def test_learning_rates_equal_torchs_schedulers() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.5)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [10])
    for step in range(100):
        if step != 10:  # SequentialLR begins its second part from the initial rate, one step late
            assert learning_rate(step, 100, 0.5, "cosine", 10) == pytest.approx(both.get_last_lr()[0])
        optimizer.step()
        both.step()
    assert [learning_rate(s, 9, 2.0, "constant", 2) for s in (0, 1, 2, 8)] == [1.0, 2.0, 2.0, 2.0]


def test_crops_are_squares_inside_the_picture_that_cover_it_all() -> None:
    crops = RandomCrops(SPEC, 0.5, seed=3)
    boxes = np.array([crops.box(300, 200, "a", number) for number in range(400)])
    sides = boxes[:, 2] - boxes[:, 0]
    assert np.allclose(sides, boxes[:, 3] - boxes[:, 1])
    assert sides.min() >= 100 - 1e-9
    assert sides.max() <= 200 + 1e-9
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 300
    assert boxes[:, 3].max() <= 200
    assert boxes[:, 0].min() < 10
    assert boxes[:, 2].max() > 290
    assert 140 < sides.mean() < 160


def test_a_crop_is_a_function_of_seed_record_and_number() -> None:
    crops = RandomCrops(SPEC, 0.5, seed=3)
    one = crops.box(300, 200, "a", 0)
    assert one == crops.box(300, 200, "a", 0)
    others = [crops.box(300, 200, "b", 0), crops.box(300, 200, "a", 1), RandomCrops(SPEC, 0.5, 4).box(300, 200, "a", 0)]
    assert all(other != one for other in others)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2)])
def test_the_smallest_pictures_have_crops(size: tuple[int, int]) -> None:
    crops = RandomCrops(SPEC, 0.3, seed=0).of(Image.new("RGB", size, "red"), "a", range(5))
    assert [c.shape for c in crops] == [(32, 32, 3)] * 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch", 1), ("lr", -1.0), ("lr", float("nan")), ("tau", 0.0), ("validation", 1.0), ("crops", 0),
     ("crop_side", 0.0), ("seed", -1), ("loss", "l2"), ("schedule", "step"), ("activation", "after"), ("latent", 0)],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(TrainingError, match=f"^{name} "):
        TrainSettings(**{name: value})
