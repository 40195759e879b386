"""The one torch module that is the whole engine: uint8 pixels in, scores out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from declip_runtime.errors import ExportError
from declip_runtime.manifest import Preprocess
from declip_training.model.declip import DeCLIP

from .fold import ExportTower
from .vit import ExportViT, can_rewrite

_HALF_MAX = 65504.0
_ROUNDED_FROM = 256  # smaller parameters stay inline in each graph, in FP32


class EngineGraph(nn.Module):
    """``images`` uint8 [B, S, S, 3] -> ``scores`` float32 [B, K], ``perceptual`` float32 [B, D] (, ``semantic``).

    Scores are raw (eq. 8), embeddings L2-normalised. Normalisation of pixels is inside; prompt embeddings and scale are
    constants. The modules are copies: nothing done here changes ``declip``.
    """

    direction: Tensor
    averaging: Tensor | None

    def __init__(self, declip: DeCLIP, preprocess: Preprocess, *, semantic: bool = False) -> None:
        super().__init__()
        visual = declip.visual
        side = getattr(visual, "image_size", preprocess.size)
        if side not in (preprocess.size, (preprocess.size, preprocess.size)):
            raise ExportError(f"the tower takes {side} pixels, not {preprocess.size}. Give its own preprocessing.")
        self.tower = ExportViT(visual, preprocess) if can_rewrite(visual) else ExportTower(visual, preprocess)
        self.perceptual = copy.deepcopy(declip.perceptual)
        self.semantic = copy.deepcopy(declip.semantic) if semantic else None
        self.size = preprocess.size
        pairs, scores = declip.averaging.shape
        self.register_buffer("direction", declip.direction.detach().clone(), persistent=False)
        averaging = None if pairs == scores else declip.averaging.t().contiguous()
        self.register_buffer("averaging", averaging, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Score."""
        return self.head(*self.embed(images))

    def embed(self, images: Tensor) -> tuple[Tensor, ...]:
        """Projected embeddings [B, D], not normalised: perceptual (, semantic)."""
        embedded = self.tower(images)
        perceptual: Tensor = self.perceptual(embedded)
        return (perceptual,) if self.semantic is None else (perceptual, self.semantic(embedded))

    def head(self, perceptual: Tensor, *semantic: Tensor) -> tuple[Tensor, ...]:
        """Everything that stays FP32 in every graph: L2 normalisation, cosine, sigmoid, mean over pairs.

        Products are written as sums: OpenVINO computes in bf16 up to a graph's last matrix product, and a score that
        is rounded to bf16 takes a few hundred values only.
        """
        f = _normalized(perceptual)
        scores = torch.sigmoid((f.unsqueeze(1) * self.direction).sum(-1))
        if self.averaging is not None:
            scores = (scores.unsqueeze(1) * self.averaging).sum(-1)
        return (scores, f, *(_normalized(s) for s in semantic))

    @torch.no_grad()
    def round_weights(self) -> EngineGraph:
        """Round parameters to FP16 in place, as they will be stored; ExportError where one is too large for FP16."""
        for name, parameter in self.named_parameters():
            if parameter.numel() < _ROUNDED_FROM:
                continue
            if not float(parameter.abs().max()) <= _HALF_MAX:
                raise ExportError(f"{name} does not fit FP16. Export with FP32 storage: --weights float32.")
            parameter.copy_(parameter.half().float())
        return self


def _normalized(x: Tensor) -> Tensor:
    return torch.div(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12))
