"""Rewrites of convolutional towers before export: batch norms into convolutions, normalisation into the first one.

Both change weights, so they happen in torch, before weights are rounded for storage: the torch module and the ONNX
graph then hold the very same values.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from declip_runtime.errors import ExportError
from declip_runtime.manifest import Preprocess
from declip_training.model.tower import image_features

from .vit import PIXEL_CENTRE

_TOLERANCE = 1e-3


class ExportTower(nn.Module):
    """Pixels uint8 [B, S, S, 3] -> embedding float32 [B, D] of any open_clip image tower."""

    shift: Tensor
    gain: Tensor

    def __init__(self, visual: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        size = preprocess.size
        mean = 255 * torch.tensor(preprocess.mean).view(1, 3, 1, 1)
        std = 255 * torch.tensor(preprocess.std).view(1, 3, 1, 1)
        pixels = torch.randint(
            0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        normalised = (pixels.permute(0, 3, 1, 2).float() - mean) / std
        self.visual = copy.deepcopy(visual).eval()
        with torch.no_grad():
            try:
                wanted = image_features(self.visual, normalised)
            except RuntimeError as error:
                raise ExportError(
                    f"open_clip's tower does not run on {size} x {size} images: {error}. Check its configuration."
                ) from error
            first = _fold_batch_norms(self.visual, normalised)
            for module in list(self.visual.modules()):
                if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
                    _replace(self.visual, module, _SpatialMean())
            if first is not None and first.padding in ((0, 0), "valid"):
                _fold_normalization(first, mean, std)
                mean, std = torch.full_like(mean, PIXEL_CENTRE), torch.ones_like(std)
            self.register_buffer("shift", mean, persistent=False)
            self.register_buffer("gain", 1 / std, persistent=False)
            change = float((self(pixels) - wanted).norm() / wanted.norm())
        if not change < _TOLERANCE:
            raise ExportError(
                f"folding batch norms changed this tower's embedding by {change:.1%}. Export another tower, and report "
                "this one: its convolutions are used in a way that was not foreseen."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (after the transpose, where a runtime can do it channel by channel) and embed."""
        x = images.float().permute(0, 3, 1, 2) - self.shift
        return image_features(self.visual, x * self.gain)


class _SpatialMean(nn.Module):
    """Average over height and width; torch exports AdaptiveAvgPool2d(1) as index arithmetic instead."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def _fold_batch_norms(visual: nn.Module, images: Tensor) -> nn.Conv2d | None:
    """Fold each batch norm whose input is a convolution's output; returns the convolution that sees the image.

    Who feeds whom is read off one forward pass; the caller compares embeddings afterwards.
    """
    produced: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # the tensor is kept, or its id could be reused
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    first: list[nn.Conv2d] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            produced[id(output)] = (output, module)
            if inputs[0] is images:
                first.append(module)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in produced:
            pairs.append((produced[id(inputs[0])][1], module))

    hooks = [m.register_forward_hook(record) for m in visual.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    visual(images)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        if norm.running_mean is None or norm.running_var is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        _replace(visual, norm, getattr(norm, "act", None) or nn.Identity())  # timm's BatchNormAct2d activates too
    return first[0] if len(first) == 1 else None


def _fold_normalization(conv: nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Make ``conv`` take pixels minus 128; exact only without padding, which would be 128 grey instead of the mean."""
    weight = conv.weight.detach() / std
    constant = (weight * (PIXEL_CENTRE - mean)).sum((1, 2, 3))
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(constant if conv.bias is None else conv.bias.detach() + constant, requires_grad=False)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
