"""Attention of UNet and VAE, written so that runtimes fuse it, and so that the strength of images is an input.

An image condition is attended to beside the text, with a softmax of its own: what diffusers computes with one
IP-Adapter a condition. All conditions share the adapter's weights, so their tokens stand on one axis and one product
gives all scores; the softmax is over a condition's tokens only. Tokens are few, so this costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from declip_runtime.errors import ExportError

from .layers import Linear


class _Attention(nn.Module):
    """What all attentions share. Queries and keys are scaled by the root of the scale each, before their product."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        _require_plain(source)
        self.heads, self.root_scale = int(source.heads), float(source.scale) ** 0.5
        self.q, self.k, self.v = (Linear.of(m) for m in (source.to_q, source.to_k, source.to_v))
        self.head_width = int(self.q.weight.shape[1]) // self.heads
        self.out = Linear.of(source.to_out[0])

    def attend(self, q: Tensor, context: Tensor) -> Tensor:
        """Scaled queries [B, heads, N, D] over ``context`` [B, M, C] -> [B, heads, N, D]."""
        k = self.split(self.k(context)) * self.root_scale
        return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)), dim=-1), self.split(self.v(context)))

    def split(self, x: Tensor) -> Tensor:
        """[B, ..., C] -> [B, heads, N, D], N all positions."""
        return x.reshape(x.shape[0], -1, self.heads, self.head_width).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """[B, heads, N, D] -> [B, N, C]."""
        y = x.transpose(1, 2)
        return y.reshape(y.shape[0], -1, self.heads * self.head_width)


class SelfAttention(_Attention):
    """x [B, N, C] -> [B, N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        y: Tensor = self.out(self.merge(self.attend(self.split(self.q(x)) * self.root_scale, x)))
        return y


class CrossAttention(_Attention):
    """Attention to text and to image conditions, each of which has a strength."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        processor = source.processor
        if not hasattr(processor, "to_k_ip"):
            raise ExportError("the UNet has no IP-Adapter in it. Load one first.")
        self.k_image, self.v_image = Linear.of(processor.to_k_ip[0]), Linear.of(processor.to_v_ip[0])

    def forward(self, x: Tensor, text: Tensor, images: Tensor, scale: Tensor) -> Tensor:
        """x [B, N, C], text [B, M, E], image tokens [B, G, T, E] of G conditions, scale [B, G] -> [B, N, C]."""
        q = self.split(self.q(x)) * self.root_scale
        k = self.split(self.k_image(images)) * self.root_scale
        scores = torch.matmul(q, k.transpose(-1, -2))
        grouped = scores.reshape(scores.shape[0], self.heads, scores.shape[2], images.shape[1], images.shape[2])
        weights = torch.softmax(grouped, dim=-1) * scale[:, None, None, :, None]
        weights = weights.reshape(weights.shape[0], self.heads, weights.shape[2], -1)
        attended = self.attend(q, text) + torch.matmul(weights, self.split(self.v_image(images)))
        y: Tensor = self.out(self.merge(attended))
        return y


def _require_plain(source: Any) -> None:
    """ExportError for an attention that does more than project, attend and project."""
    extras = ("norm_q", "norm_k", "norm_cross", "add_k_proj", "spatial_norm")
    if found := [name for name in extras if getattr(source, name, None) is not None]:
        raise ExportError(f"an attention of the model has {found[0]}, which is not supported. Give another base model.")
    if source.rescale_output_factor != 1.0:
        raise ExportError("an attention of the model rescales its output. Give another base model.")
