"""open_clip's vision transformer written for execution: same weights, same result, a graph that runtimes like.

Measured on OpenVINO (bf16, ViT-B-32) against the plain export, which is a quarter slower: separate q, k and v
products need no Slice; scaling q and k by the square root of the softmax scale keeps k's two transposes apart, so
that both disappear into the fused attention; patches taken by one transpose and one product beat a convolution with
three input channels; the last block computes only the token that is pooled.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.manifest import Preprocess

PIXEL_CENTRE = 128.0
"""Subtracted from pixels first: halves the largest value, and with it the error of a bf16 or FP16 patch product."""


class Linear(nn.Module):
    """x [..., I] -> [..., O] with the weight stored [I, O], which exports as one MatMul and one Add."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add."""
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Multi-head attention of ``query`` [B, M, W] over ``x`` [B, N, W]; scaled before the product, softmax, product."""

    def __init__(self, source: nn.MultiheadAttention, layer_scale: Tensor | float) -> None:
        super().__init__()
        width: int = source.embed_dim
        self.heads: int = source.num_heads
        self.head_width = width // self.heads
        self.root_scale = self.head_width**-0.25
        weights, biases = _parameter(source.in_proj_weight).split(width), _parameter(source.in_proj_bias).split(width)
        self.q, self.k, self.v = (Linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out = _scaled_linear(source.out_proj, layer_scale)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        """Attend."""
        q = self._split(self.q(query)) * self.root_scale
        k = self._split(self.k(x)) * self.root_scale
        v = self._split(self.v(x))
        attended = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)), dim=-1), v)
        y: Tensor = self.out(attended.transpose(1, 2).reshape(-1, query.shape[1], self.heads * self.head_width))
        return y

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1], self.heads, self.head_width).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm residual block; ``first_token_only`` computes nothing but the token that is pooled."""

    def __init__(self, source: Any, *, first_token_only: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = copy.deepcopy(source.ln_1), copy.deepcopy(source.ln_2)
        self.act: nn.Module = source.mlp.gelu
        self.attention = Attention(source.attn, _layer_scale(source.ls_1))
        self.up = Linear(source.mlp.c_fc.weight, source.mlp.c_fc.bias)
        self.down = _scaled_linear(source.mlp.c_proj, _layer_scale(source.ls_2))
        self.first_token_only = first_token_only

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        h = self.ln_1(x)
        x = x[:, :1] + self.attention(h[:, :1], h) if self.first_token_only else x + self.attention(h, h)
        y: Tensor = x + self.down(self.act(self.up(self.ln_2(x))))
        return y


class ExportViT(nn.Module):
    """Pixels uint8 [B, S, S, 3] -> embedding float32 [B, D] of an open_clip ``VisionTransformer``.

    The normalisation is folded into the patch product, exactly: W (x / 255 - mean) / std is
    W' (x - 128) + b' with W' = W / (255 std) and b' = sum W (128 / 255 - mean) / std, and b' joins the positions.
    """

    pixel_centre: Tensor

    def __init__(self, visual: Any, preprocess: Preprocess) -> None:
        super().__init__()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
        kernel = visual.conv1.weight.detach()  # [W, 3, P, P]
        constant = (kernel * (PIXEL_CENTRE / 255 - mean) / std).sum((1, 2, 3))
        self.grid, self.patch = visual.grid_size[0], visual.patch_size[0]
        self.patch_embedding = Linear((kernel / (255 * std)).permute(0, 2, 3, 1).flatten(1), None)
        # One value per input of the product, not one scalar: OpenVINO runs the scalar form 15 times slower.
        self.register_buffer("pixel_centre", torch.full((self.patch**2 * 3,), PIXEL_CENTRE), persistent=False)
        positions = visual.positional_embedding.detach()
        first = positions[:1] + visual.class_embedding.detach()
        self.positions = nn.Parameter(torch.cat([first, positions[1:] + constant])[None], requires_grad=False)
        self.first_token = visual.pool_type == "tok"
        self.ln_pre, self.ln_post = copy.deepcopy(visual.ln_pre), copy.deepcopy(visual.ln_post)
        self.norm_after_pool: bool = visual.final_ln_after_pool
        last = len(visual.transformer.resblocks) - 1
        self.blocks = nn.ModuleList(
            Block(block, first_token_only=self.first_token and i == last)
            for i, block in enumerate(visual.transformer.resblocks)
        )
        self.projection: nn.Module = nn.Identity() if visual.proj is None else Linear(visual.proj.t(), None)

    def forward(self, images: Tensor) -> Tensor:
        """Embed."""
        x = images.float().reshape(-1, self.grid, self.patch, self.grid, self.patch * 3)
        x = x.transpose(2, 3).reshape(-1, self.grid**2, self.patch**2 * 3)
        x = self.patch_embedding(x - self.pixel_centre)
        x = self.ln_pre(F.pad(x, (0, 0, 1, 0)) + self.positions)  # the class token is 0 plus its position
        for block in self.blocks:
            x = block(x)
        if self.first_token:
            pooled = self.ln_post(x[:, 0])
        elif self.norm_after_pool:
            pooled = self.ln_post(x[:, 1:].mean(dim=1))
        else:
            pooled = self.ln_post(x)[:, 1:].mean(dim=1)
        embedding: Tensor = self.projection(pooled)
        return embedding


def can_rewrite(visual: nn.Module) -> bool:
    """Whether ``ExportViT`` reproduces ``visual``; other towers are exported as they are."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    return (
        type(visual) is VisionTransformer
        and visual.attn_pool is None
        and visual.pool_type in ("tok", "avg")
        and visual.grid_size[0] == visual.grid_size[1]
        and visual.patch_size[0] == visual.patch_size[1]
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
    )


def _parameter(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise TypeError("an attention without this parameter is no ResidualAttentionBlock's")
    return tensor.detach()


def _layer_scale(module: nn.Module) -> Tensor | float:
    gamma = getattr(module, "gamma", None)
    return 1.0 if gamma is None else gamma.detach()


def _scaled_linear(source: Any, scale: Tensor | float) -> Linear:
    """The layer with LayerScale folded into its rows: scale * (W x + b)."""
    rows = scale[:, None] if isinstance(scale, Tensor) else scale
    return Linear(source.weight * rows, None if source.bias is None else source.bias * scale)
