"""The bundled engine's image tower, known to timm and open_clip as ``declip_nano``.

The trunk is an EfficientNet-Lite0 that sees the picture at half its side: what a photo shows needs no more, and its
depthwise layers cost too much at the whole side. Noise, compression and fine blur are gone from a halved picture, so a
few plain convolutions look at all of its pixels and add what they find to the trunk. Quality is a matter of texture as
much as of content: of four depths, means and deviations over the picture are the features, beside the trunk's own.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from .frozen_depthwise import FrozenDepthwise
from .torchvision_ops import ensure_importable

ensure_importable()

import timm  # noqa: E402
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval  # noqa: E402

TRUNK = "efficientnet_lite0"
STEM_WIDTH = 32
DETAIL_WIDTHS = (32, 48, 64, 96)
STAGE_WIDTHS = (24, 40, 112, 320)  # after stages 1, 2, 4 and 6
HEAD_WIDTH = 1280
FROZEN_STAGES = 2

default_cfgs = generate_default_cfgs(
    {
        "declip_nano": {
            "input_size": (3, 384, 384),
            "first_conv": "stem",
            "classifier": "",
            "license": "apache-2.0",
        }
    }
)


class NanoTower(nn.Module):
    """Features [B, ``num_features``] of normalised pictures [B, 3, S, S], S a multiple of 16.

    Its first two stages and all depthwise kernels are never trained: they hold what they were made with.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, num_classes: int = 0, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, STEM_WIDTH, 6, 4, padding=2)
        trunk = folded(trunk_network())
        self.stages, self.conv_head = trunk.blocks, trunk.conv_head
        widths = itertools.pairwise((in_chans, *DETAIL_WIDTHS))
        self.detail = nn.ModuleList(nn.Conv2d(into, out, 3, 2, padding=1) for into, out in widths)
        self.joins = nn.ModuleList()
        for into, out in zip(DETAIL_WIDTHS[2:], STAGE_WIDTHS[:2], strict=True):
            join = nn.Conv2d(into, out, 1)
            nn.init.zeros_(join.weight)
            nn.init.zeros_(join.bias)  # type: ignore[arg-type]
            self.joins.append(join)
        self.num_features = 2 * (DETAIL_WIDTHS[-1] + sum(STAGE_WIDTHS[1:])) + HEAD_WIDTH
        self.register_buffer("centre", torch.zeros(self.num_features))
        self.register_buffer("spread", torch.ones(self.num_features))
        for stage in (self.stem, *self.stages[:FROZEN_STAGES]):
            stage.requires_grad_(False)
        for parent in list(self.stages.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and child.groups > 1:
                    setattr(parent, name, FrozenDepthwise(child))

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """There is no classifier to drop; open_clip asks for it."""

    def forward(self, x: Tensor) -> Tensor:
        """Standardised features, in the type of ``x``."""
        return ((self.pooled(x) - self.centre) / self.spread).to(x.dtype)

    def pooled(self, x: Tensor) -> Tensor:
        """The same before they are standardised."""
        details = []
        detail = x
        for layer in self.detail:
            detail = F.relu(layer(detail))
            details.append(detail)
        with torch.no_grad():  # the stages that are never trained
            x = F.relu6(self.stem(x))
            for stage in self.stages[: FROZEN_STAGES - 1]:
                x = stage(x)
            x = self.stages[FROZEN_STAGES - 1](x)
        x = x + self.joins[0](details[2])
        x = self.stages[2](x) + self.joins[1](details[3])
        features = [*statistics(details[3]), *statistics(x)]
        x = self.stages[4](self.stages[3](x))
        features += statistics(x)
        x = self.stages[6](self.stages[5](x))
        features += statistics(x)
        return torch.cat([*features, F.relu6(self.conv_head(x)).float().mean((2, 3))], dim=1)


def trunk_network(name: str = TRUNK) -> nn.Module:
    """timm's EfficientNet-Lite with a classifier of ImageNet, as its public weights fit it; random."""
    network: nn.Module = timm.create_model(name, bn_eps=1e-3)
    return network


def folded(model: nn.Module) -> Any:
    """timm's EfficientNet with each batch norm folded into its convolution: cheaper to train, the same values."""
    model.eval()
    for parent in list(model.modules()):
        children = dict(parent.named_children())
        for before, name in itertools.pairwise(children):
            conv, norm = children[before], children[name]
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
                plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps).eval()
                plain.load_state_dict(norm.state_dict())
                # torch's fused bias does not ask for a gradient where the convolution had none
                setattr(parent, before, fuse_conv_bn_eval(conv, plain).requires_grad_(True))
                setattr(parent, name, norm.act)  # timm's activates as well
    return model


def statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, C] of [B, C, H, W] over the picture, FP32."""
    maps = maps.float()
    mean = maps.mean((2, 3), keepdim=True)
    variance = (maps - mean).square().mean((2, 3))
    return mean.flatten(1), (variance + 1e-4).sqrt()


@register_model  # type: ignore[untyped-decorator]
def declip_nano(pretrained: bool = False, **kwargs: Any) -> NanoTower:
    """Total stride 64. Its weights come from ``imagenet_start`` and from training."""
    tower: NanoTower = build_model_with_cfg(NanoTower, "declip_nano", pretrained, **kwargs)
    return tower
