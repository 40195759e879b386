"""The teacher: what it sees, its regression, and that it never says what it was told of the same photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from declip_training import teacher
from declip_training.model.imagenet_start import LITE0, LITE2
from declip_training.model.nano_tower import trunk_network
from declip_training.teacher import FOLDS, RIDGE, WIDTH, cross_fitted, depth_features, kernel, regressed


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def test_depths_are_those_of_the_public_network(pixels: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """timm's own network with its norms, in FP32, against the folded one in bf16."""
    found = depth_features(LITE0, pixels, tmp_path / "f.safetensors")
    network: Any = trunk_network(LITE0.network).eval()
    network.load_state_dict(dict(zip(network.state_dict(), LITE0.read().values(), strict=True)))
    with torch.no_grad():
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        maps = network.bn1(network.conv_stem(x))
        wanted = []
        for stage in network.blocks:
            maps = stage(maps)
            wanted.append(torch.cat([maps.mean((2, 3)), maps.std((2, 3), unbiased=False)], 1))
        wanted.append(network.bn2(network.conv_head(maps)).mean((2, 3)))
    assert [f.shape for f in found] == [w.shape for w in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert F.cosine_similarity(ours, theirs).min() > 0.99


def test_features_are_made_once_and_reported(
    pixels: npt.NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "SAME_TIME", 2)
    seen: list[tuple[int, int]] = []
    first = depth_features(LITE2, pixels, tmp_path / "f.safetensors", lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    again = depth_features(LITE2, pixels, tmp_path / "f.safetensors", lambda done, total: seen.append((done, total)))
    assert len(seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def _photos(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, channels, generator=generator) for channels in (3, 40)]


def test_every_depth_counts_alike() -> None:
    known, asked = _photos(30), _photos(4, seed=1)
    apart = np.zeros((30, 4))
    for left, right in zip(known, asked, strict=True):
        centre, spread = left.mean(0), left.std(0)
        apart += cdist((left - centre) / spread, (right - centre) / spread, "sqeuclidean") / left.shape[1]
    np.testing.assert_allclose(kernel(known, asked), np.exp(-WIDTH * apart / 2), atol=1e-4)
    assert kernel(known, known).diagonal() == pytest.approx(1, abs=1e-4)


def test_regression_is_scipys() -> None:
    """SciPy's smoothed interpolation by Gaussians, without a polynomial, solves the same system."""
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(40, 2)), rng.normal(size=(9, 2))
    opinions = rng.uniform(size=40)
    epsilon = 0.8
    theirs = RBFInterpolator(
        known, opinions - opinions.mean(), smoothing=RIDGE, kernel="gaussian", epsilon=epsilon, degree=-1
    )
    similar, between = (torch.from_numpy(np.exp(-((epsilon * cdist(a, known)) ** 2))) for a in (known, asked))
    ours = regressed(similar.float(), torch.from_numpy(opinions).float(), between.float())
    np.testing.assert_allclose(ours, theirs(asked) + opinions.mean(), atol=1e-5)


def test_the_teacher_does_not_know_a_photos_own_opinion() -> None:
    similar = kernel(_photos(50), _photos(50))
    opinions = torch.rand(50, generator=torch.Generator().manual_seed(2))
    said = cross_fitted(similar, opinions, seed=3)
    changed = opinions.clone()
    changed[7] = 1 - changed[7]
    moved = (cross_fitted(similar, changed, seed=3) - said).abs() > 1e-7
    assert not moved[7]
    assert moved.sum() == 50 - 50 // FOLDS  # all but the photos that are left out together with it


def test_the_teacher_finds_an_opinion_that_shows() -> None:
    photos = _photos(400)
    truth = photos[0][:, 0]
    noisy = truth + torch.randn(400, generator=torch.Generator().manual_seed(1))
    said = cross_fitted(kernel([photos[0]], [photos[0]]), noisy, seed=0)

    def agreement(x: torch.Tensor) -> float:
        return float(np.corrcoef(x, truth)[0, 1])

    assert agreement(said) > agreement(noisy) + 0.1
