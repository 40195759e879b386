"""The text encoders of Stable Diffusion (CLIP's) written for execution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from declip_runtime.errors import ExportError

from .layers import Linear, require_class

_MASKED = -1e4
"""Added to scores that must not count: the exponential is 0 after it, and FP16 holds it."""


class TextLayer(nn.Module):
    """One layer of CLIP's text transformer: x [B, N, C] -> [B, N, C]; a token sees itself and those before it."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        attention = source.self_attn
        self.norm1, self.norm2, self.act = source.layer_norm1, source.layer_norm2, source.mlp.activation_fn
        self.heads, self.head_width = int(attention.num_heads), int(attention.head_dim)
        self.root_scale = float(attention.scale) ** 0.5
        self.q, self.k, self.v, self.out, self.up, self.down = (
            Linear.of(m)
            for m in (
                attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, source.mlp.fc1, source.mlp.fc2
            )
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask`` [N, N] is added to the scores."""
        h = self.norm1(x)
        q, k, v = self._split(self.q(h)) * self.root_scale, self._split(self.k(h)) * self.root_scale, self.v(h)
        attended = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)) + mask, dim=-1), self._split(v))
        merged = attended.transpose(1, 2)
        x = x + self.out(merged.reshape(merged.shape[0], -1, self.heads * self.head_width))
        y: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return y

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.heads, self.head_width).transpose(1, 2)


class TextTower(nn.Module):
    """One CLIP text encoder, in steps: embed, through layers, norm, pool."""

    mask: Tensor
    before: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        require_class(source, "CLIPTextModel", "CLIPTextModelWithProjection")
        config = source.config
        if getattr(config, "use_attention_mask", False):
            raise ExportError("the text encoder is told what is padding. Give a Stable Diffusion 1.x, 2.x or XL.")
        body = getattr(source, "text_model", source)  # transformers 5 has the body's layers in the model itself
        self.length, self.width = int(config.max_position_embeddings), int(config.hidden_size)
        self.tokens = nn.Parameter(body.embeddings.token_embedding.weight.detach(), requires_grad=False)
        self.positions = nn.Parameter(body.embeddings.position_embedding.weight.detach(), requires_grad=False)
        self.blocks = nn.ModuleList(TextLayer(layer) for layer in body.encoder.layers)
        self.norm: nn.Module = body.final_layer_norm
        projection = getattr(source, "text_projection", None)
        self.projection = None if projection is None else Linear.of(projection)
        self.pooled_width = self.width if projection is None else int(projection.out_features)
        # Configurations of before transformers 4.31 say 2 and mean the highest id.
        self.end: int | None = None if config.eos_token_id == 2 else int(config.eos_token_id)
        seen = torch.ones(self.length, self.length).tril()
        self.register_buffer("mask", (1 - seen) * _MASKED, persistent=False)
        self.register_buffer("before", seen.t().contiguous() - torch.eye(self.length), persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids int64 [B, N] -> [B, N, C]."""
        return nn.functional.embedding(ids, self.tokens) + self.positions

    def through(self, x: Tensor, first: int, last: int) -> Tensor:
        """States after the layers ``first`` to ``last`` - 1."""
        for block in self.blocks[first:last]:
            x = block(x, self.mask)
        return x

    def pool(self, ids: Tensor, states: Tensor) -> Tensor:
        """The projected state of each text's end [B, P], of normalised states [B, N, C].

        The end is the first such token, as the padding may be the same. Found by a product with ones before it: what
        looks for an index (ArgMax, Gather) is slow or missing in some runtimes, and a sum of zeros and one is exact.
        """
        end = ids.amax(dim=1, keepdim=True) if self.end is None else self.end
        ends = (ids == end).float()
        first = ends * torch.relu(1 - torch.matmul(ends, self.before))
        pooled = torch.matmul(first[:, None], states)[:, 0]
        return pooled if self.projection is None else self.projection(pooled)


class ExportText(nn.Module):
    """``input_ids`` int64 [B, 77] -> ``hidden`` float32 [B, 77, C], normalised states of the last layer."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.tower = TextTower(source)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode."""
        x = self.tower.through(self.tower.embed(input_ids), 0, len(self.tower.blocks))
        y: Tensor = self.tower.norm(x)
        return y


class ExportTwoTexts(nn.Module):
    """``input_ids`` and ``input_ids_2`` int64 [B, 77] -> ``hidden`` [B, 77, C1 + C2] and ``pooled`` [B, P], as SDXL's.

    Hidden are the states before each encoder's last layer, pooled is the second encoder's projected end of text.
    """

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = TextTower(first), TextTower(second)
        del self.first.blocks[-1]  # its result is not asked for
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """Encode."""
        one, two = self.first, self.second
        hidden_1 = one.through(one.embed(input_ids), 0, len(one.blocks))
        hidden_2 = two.through(two.embed(input_ids_2), 0, len(two.blocks) - 1)
        states = two.norm(two.through(hidden_2, len(two.blocks) - 1, len(two.blocks)))
        return torch.cat([hidden_1, hidden_2], dim=-1), two.pool(input_ids_2, states)
