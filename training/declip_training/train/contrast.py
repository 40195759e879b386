"""The contrastive loss of eqs. 6 and 7, written for the inner loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .world import World


class _ImageToText(torch.autograd.Function):
    """``losses.image_to_text`` of normalised rows with its gradient by hand.

    Autograd would keep and walk through the [b, B] logits five times; the gradient is softmax minus identity, made
    in place.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, texts: Tensor, scale: Tensor, first: int) -> Tensor:
        inverse = torch.linalg.vector_norm(projected, dim=1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        unit = projected * inverse
        logits = torch.mm(unit.to(texts.dtype), texts.T).to(projected.dtype).mul_(scale)
        positive = logits.diagonal(first).clone()
        top = logits.amax(1, keepdim=True)
        weights = logits.sub_(top).exp_()
        total = weights.sum(1, keepdim=True)
        loss = (total.log().add_(top).squeeze(1) - positive).sum() / len(texts)
        weights.mul_(total.reciprocal_()).diagonal(first).sub_(1)
        ctx.save_for_backward(weights.to(texts.dtype), texts, unit, inverse, scale)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        weights, texts, unit, inverse, scale = ctx.saved_tensors
        change = torch.mm(weights, texts).to(unit.dtype).mul_(gradients[0] / len(texts))
        along = torch.linalg.vecdot(change, unit).unsqueeze(1)
        return change.addcmul_(unit, along, value=-1).mul_(inverse * scale), None, along.sum(), None


def image_to_text(projected: Tensor, texts: Tensor, scale: Tensor, first: int = 0) -> Tensor:
    """Loss of this process's images against the texts of all, a scalar; summed over processes it is eq. 6 or 7.

    ``projected`` float [b, D], not normalised; image i belongs to text ``first + i`` of ``texts`` [B, D], normalised,
    in whose dtype (float32 or bfloat16) matrices are multiplied. ``scale`` is 1 / tau.
    """
    loss: Tensor = _ImageToText.apply(projected, texts, scale, first)  # type: ignore[no-untyped-call]
    return loss


def symmetric(projected: Tensor, texts: Tensor, scale: Tensor, world: World) -> Tensor:
    """Mean of image-to-text and text-to-image, as CLIP was trained; arguments and result as in ``image_to_text``."""
    first = world.rank * len(projected)
    everyone = world.gather(F.normalize(projected, dim=-1))
    own = texts[first : first + len(projected)]
    logits = scale * torch.mm(own, everyone.to(texts.dtype).T).to(projected.dtype)
    targets = torch.arange(first, first + len(projected), device=projected.device)
    back = F.cross_entropy(logits, targets, reduction="sum") / len(texts)
    return 0.5 * (image_to_text(projected, texts, scale, first) + back)
