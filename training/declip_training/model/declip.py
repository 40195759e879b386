"""DeCLIP: a frozen CLIP image tower, two projectors, and antonym prompts (arXiv 2503.02206, sections 4.1 and 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import CheckpointError

from .projector import Projector
from .prompts import PromptEmbeddings, PromptSet
from .tower import Tokenizer, image_features


class DeCLIPOutput(NamedTuple):
    """``scores`` float [B, K] raw, in 0..1; ``perceptual`` and ``semantic`` float [B, D], L2-normalised."""

    scores: Tensor
    perceptual: Tensor
    semantic: Tensor


class DeCLIP(nn.Module):
    """Normalised images float [B, 3, S, S] -> ``DeCLIPOutput``; the tower is frozen and stays in evaluation mode.

    Without projectors the identity stands in, which is zero-shot CLIP, the paper's baseline.
    """

    averaging: Tensor
    direction: Tensor

    def __init__(
        self,
        visual: nn.Module,
        prompts: PromptEmbeddings,
        logit_scale: float,
        perceptual: Projector | None = None,
        semantic: Projector | None = None,
    ) -> None:
        super().__init__()
        dim = prompts.pairs.shape[2]
        for projector in (perceptual, semantic):
            if projector is not None and projector.dim != dim:
                raise CheckpointError(
                    f"the projector takes embeddings of width {projector.dim}, the tower gives {dim}. "
                    "Use the tower that the projector was trained on."
                )
        self.visual = visual.eval().requires_grad_(False)
        self.perceptual: nn.Module = perceptual or nn.Identity()
        self.semantic: nn.Module = semantic or nn.Identity()
        self.logit_scale = logit_scale
        self.dim = dim
        # softmax([a, b])[0] = sigmoid(a - b): one product with scale * (t+ - t-) gives eq. 8 for every pair.
        self.register_buffer("direction", logit_scale * (prompts.pairs[:, 0] - prompts.pairs[:, 1]), persistent=False)
        self.register_buffer("averaging", prompts.averaging(), persistent=False)

    @classmethod
    def from_clip(
        cls,
        clip: nn.Module,
        tokenizer: Tokenizer,
        prompts: PromptSet,
        perceptual: Projector | None = None,
        semantic: Projector | None = None,
    ) -> DeCLIP:
        """Encode ``prompts`` with the text tower of ``clip`` and keep its image tower."""
        own = float(clip.logit_scale.detach().exp())  # type: ignore[operator]
        scale = own if prompts.logit_scale is None else prompts.logit_scale
        visual = clip.visual
        return cls(visual, prompts.encode(clip, tokenizer), scale, perceptual, semantic)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> DeCLIP:
        """Projectors follow ``mode``; the frozen tower does not, or its batch norms would drift."""
        super().train(mode)
        self.visual.eval()
        return self

    def scores(self, perceptual: Tensor) -> Tensor:
        """Raw scores [B, K] of normalised perceptual embeddings [B, D]: mean over a score's pairs of eq. 8."""
        return torch.sigmoid(perceptual @ self.direction.T) @ self.averaging

    def forward(self, images: Tensor) -> DeCLIPOutput:
        """Score normalised images."""
        embedded = image_features(self.visual, images).float()
        perceptual = F.normalize(self.perceptual(embedded), dim=-1)
        semantic = F.normalize(self.semantic(embedded), dim=-1)
        return DeCLIPOutput(self.scores(perceptual), perceptual, semantic)
