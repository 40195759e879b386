"""The bundled engine's image tower, known to timm and open_clip as ``declip_nano``.

A ResNet of five basic blocks whose stem halves the picture twice before its wide convolutions. So it takes 384 pixels a
side where its relatives take 224 at the same cost: noise and compression are gone from a photo scaled down to 224.
"""

from __future__ import annotations

from typing import Any

from .torchvision_ops import ensure_importable

ensure_importable()

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # noqa: E402
from timm.models.resnet import BasicBlock, ResNet  # noqa: E402

default_cfgs = generate_default_cfgs(
    {
        "declip_nano": {
            "input_size": (3, 384, 384),
            "pool_size": (6, 6),
            "first_conv": "conv1.0",
            "classifier": "fc",
            "license": "apache-2.0",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def declip_nano(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """6.1 M weights, total stride 64; no pretrained weights."""
    blocks: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (1, 1, 2, 1),
        "stem_width": 32,
        "stem_type": "deep_tiered",
        "avg_down": True,
    }
    model: ResNet = build_model_with_cfg(ResNet, "declip_nano", pretrained, **blocks, **kwargs)
    model.conv1[3].stride = (2, 2)
    return model
