"""The contrastive loss of eqs. 6 and 7, written for the inner loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .world import World

_ROWS = 256
"""Of the logits at a time: with 1,024 texts a megabyte, which stays in the cache from the first product to the last."""


class _ImageToText(torch.autograd.Function):
    """``losses.image_to_text`` of normalised rows with its gradient by hand.

    Autograd would keep the [b, B] logits and walk through them five times. The gradient is softmax minus identity, and
    as the loss is a scalar, it is known but for a factor as soon as the loss is.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, texts: Tensor, scale: Tensor, first: int) -> Tensor:
        inverse = torch.linalg.vector_norm(projected, dim=1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        unit = projected * inverse
        change = torch.empty_like(unit) if any(ctx.needs_input_grad) else None
        loss = unit.new_zeros(())
        for start in range(0, len(unit), _ROWS):
            rows = slice(start, start + _ROWS)
            logits = torch.mm(unit[rows].to(texts.dtype), texts.T).to(unit.dtype).mul_(scale)
            positive = logits.diagonal(first + start).clone()
            top = logits.amax(1, keepdim=True)
            weights = logits.sub_(top).exp_()
            total = weights.sum(1, keepdim=True)
            loss += (total.log().add_(top).squeeze(1) - positive).sum()
            if change is not None:
                weights.mul_(total.reciprocal_()).diagonal(first + start).sub_(1)
                change[rows] = torch.mm(weights.to(texts.dtype), texts)
        if change is not None:
            ctx.save_for_backward(change, unit, inverse, scale)
            ctx.texts = len(texts)
        mean: Tensor = loss / len(texts)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        change, unit, inverse, scale = ctx.saved_tensors
        factor = gradients[0] / ctx.texts
        along = torch.linalg.vecdot(change, unit).unsqueeze(1)
        grown = torch.addcmul(change, unit, along, value=-1).mul_(inverse * (scale * factor))
        return grown, None, along.sum() * factor, None


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
