"""Pairs of real camera noise: read whole or not at all, and counted by scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip_runtime.errors import ImageError, TrainingError
from declip_training.evaluation.camera_noise import NoisePair, Pixels, judge_pairs, read_polyu

SCENES = {
    "Canon5D2_5_160_3200_chair_{}": 3,
    "NikonD800_6-3_125_5000_plant_{}": 2,
    "NikonD800_6-3_125_5000_plant__{}": 1,  # a slip in the published names: the same scene
    "Sony_3-5_200_1600_classroom_{}": 1,
}


@pytest.fixture
def polyu(tmp_path: Path) -> Path:
    """A miniature in the published layout; a mean is plain, a single shot noisy."""
    crops = tmp_path / "polyu" / "CroppedImages"
    crops.mkdir(parents=True)
    rng = np.random.default_rng(0)
    number = 0
    for name, count in SCENES.items():
        for _ in range(count):
            number += 1
            stem = crops / name.format(number)
            Image.new("RGB", (24, 24), (100, 110, 120)).save(f"{stem}_mean.JPG")
            Image.fromarray(rng.integers(60, 160, (24, 24, 3), dtype=np.uint8)).save(f"{stem}_real.JPG")
    (crops / "Thumbs.db").write_bytes(b"no picture")
    return tmp_path / "polyu"


def _plainness(images: list[Pixels]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([-image.astype(float).std() for image in images])


def test_names_are_understood(polyu: Path) -> None:
    pairs = read_polyu(polyu)
    assert len(pairs) == 7
    first = pairs[0]
    assert (first.camera, first.iso, first.scene) == ("Canon5D2", 3200, "Canon5D2_5_160_3200_chair")
    assert first.mean.name.endswith("_mean.JPG")
    assert first.single.name == first.mean.name.replace("mean", "real")
    assert len({pair.scene for pair in pairs}) == 3


def test_an_oracle_an_inverted_and_a_constant_score(polyu: Path) -> None:
    pairs = read_polyu(polyu)
    oracle = judge_pairs(_plainness, pairs)
    assert (oracle.all.right, oracle.interval) == (1.0, (1.0, 1.0))
    assert (oracle.all.pairs, oracle.all.scenes) == (7, 3)
    assert judge_pairs(lambda images: -_plainness(images), pairs).all.right == 0.0
    assert judge_pairs(lambda images: np.zeros(len(images)), pairs).all.right == 0.5  # ties


def test_a_random_score_is_right_half_the_time(polyu: Path) -> None:
    rng = np.random.default_rng(0)
    result = judge_pairs(lambda images: rng.random(len(images)), read_polyu(polyu) * 60)
    assert result.all.right == pytest.approx(0.5, abs=0.08)


def test_groups_count_their_own_pairs(polyu: Path) -> None:
    pairs = read_polyu(polyu)

    def canon_only(images: list[Pixels]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return _plainness(images) * np.repeat([1] * 3 + [-1] * 4, 2)

    result = judge_pairs(canon_only, pairs)
    assert {name: (s.right, s.pairs, s.scenes) for name, s in result.by_camera.items()} == {
        "Canon5D2": (1.0, 3, 1),
        "NikonD800": (0.0, 3, 1),
        "Sony": (0.0, 1, 1),
    }
    assert {iso: s.pairs for iso, s in result.by_iso.items()} == {1600: 1, 3200: 3, 5000: 3}
    assert result.all.right == pytest.approx(3 / 7)


def test_crops_of_one_scene_are_not_independent(tmp_path: Path) -> None:
    """40 crops of two scenes say as little as two scenes: the interval is wide."""
    paths = [tmp_path / "plain.png", tmp_path / "noisy.png"]
    Image.new("RGB", (8, 8)).save(paths[0])
    Image.effect_noise((8, 8), 90).convert("RGB").save(paths[1])
    good = [NoisePair(paths[0], paths[1], "A", 100, "first")] * 20
    bad = [NoisePair(paths[1], paths[0], "A", 100, "second")] * 20
    result = judge_pairs(_plainness, good + bad)
    assert result.all.right == 0.5
    assert result.interval == (0.0, 1.0)


def test_more_pairs_than_go_through_at_once_stay_in_order(polyu: Path) -> None:
    sizes: list[int] = []

    def counting(images: list[Pixels]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        sizes.append(len(images))
        return _plainness(images)

    assert judge_pairs(counting, read_polyu(polyu) * 5).all.right == 1.0
    assert sum(sizes) == 70
    assert max(sizes) <= 32


def _hostile(folder: Path, what: str) -> None:
    crops = folder / "CroppedImages"
    mean = sorted(crops.glob("*_mean.JPG"))[0]
    if what in ("no folder", "a file"):
        crops.rename(folder / "Cropped")
        if what == "a file":
            crops.touch()
    elif what == "empty":
        for path in crops.glob("*.JPG"):
            path.unlink()
    elif what == "no mean":
        mean.unlink()
    elif what == "no single":
        mean.with_name(mean.name.replace("mean", "real")).unlink()
    else:
        mean.rename(crops / "holiday.jpg")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no folder", r"CroppedImages cannot be read \(No such file"),
        ("a file", r"CroppedImages cannot be read \(Not a directory"),
        ("empty", "holds no JPEG"),
        ("no mean", r"chair_1_mean\.JPG is missing"),
        ("no single", r"chair_1_real\.JPG is missing"),
        ("stranger", r"holiday\.jpg is not named Camera_"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(what: str, says: str, polyu: Path) -> None:
    _hostile(polyu, what)
    with pytest.raises(TrainingError, match=says) as caught:
        read_polyu(polyu)
    assert "csjunxu/PolyU-Real-World-Noisy-Images-Dataset" in str(caught.value)


def test_an_unreadable_crop_is_named(polyu: Path) -> None:
    pairs = read_polyu(polyu)
    pairs[2].single.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=pairs[2].single.name):
        judge_pairs(_plainness, pairs)


def test_no_pair_is_no_result() -> None:
    with pytest.raises(TrainingError, match="no pair"):
        judge_pairs(_plainness, [])
