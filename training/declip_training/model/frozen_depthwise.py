"""Depthwise convolution whose kernel stays as it is, at a fraction of the usual cost of training.

On a CPU the gradient of depthwise kernels takes most of a step of fine-tuning, and torch computes that of their input
slowly in bf16. Without the former, the latter is a depthwise convolution with the kernel turned around.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenDepthwise(nn.Conv2d):
    """In place of a depthwise ``conv`` with a bias, an odd square kernel and half of that as padding.

    Shares its parameters; the kernel is not trained, the bias is. Values and the gradients of input and bias equal
    ``conv``'s.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        side = conv.kernel_size[0]
        stride = conv.stride[0]
        super().__init__(conv.in_channels, conv.out_channels, side, stride, side // 2, groups=conv.groups)
        self.weight, self.bias = conv.weight, conv.bias
        self.weight.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Depthwise convolution of [B, C, H, W]."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        out: Tensor = _Depthwise.apply(input, self.weight, self.bias, self.stride[0])  # type: ignore[no-untyped-call]
        return out


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.shape = stride, x.shape
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        bias = gradient.sum((0, 2, 3), dtype=torch.float32)
        if ctx.stride > 1:
            spread = torch.zeros(ctx.shape, dtype=gradient.dtype, device=gradient.device)
            spread = spread.contiguous(memory_format=torch.channels_last)
            spread[:, :, :: ctx.stride, :: ctx.stride] = gradient
            gradient = spread
        turned = weight.flip(2, 3).to(gradient.dtype)
        return F.conv2d(gradient, turned, None, 1, weight.shape[-1] // 2, groups=weight.shape[0]), None, bias, None
