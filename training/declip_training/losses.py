"""Losses of DeCLIP and of the bundled recipe. All take and give float32; embeddings are L2-normalised rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def image_to_text(images: Tensor, texts: Tensor, scale: Tensor | float, targets: Tensor | None = None) -> Tensor:
    """Image-to-text contrastive loss, eqs. 6 and 7: cross entropy of ``scale * images @ texts.T``, a scalar.

    ``images`` [B, D], ``texts`` [M, D] with M >= B; image i belongs to text i unless ``targets`` (int64 [B], or
    float32 [B, M] rows of probabilities) says otherwise. ``scale`` is 1 / tau.
    """
    logits = scale * images @ texts.T
    if targets is None:
        targets = torch.arange(len(images), device=images.device)
    return F.cross_entropy(logits, targets)


def indifference(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """How far ``images`` [B, D] are from finding all ``texts`` [M, D] alike, a scalar from 0.

    Divergence of the softmax of ``scale * images @ texts.T`` from the uniform distribution, KL(uniform || softmax).
    """
    return -F.log_softmax(scale * images @ texts.T, dim=1).mean() - math.log(len(texts))


def antonym_logit(images: Tensor, pair: Tensor, scale: Tensor | float) -> Tensor:
    """Logit [B] of eq. 8 for ``pair`` [2, D] (positive, negative): its sigmoid is the softmax over the pair."""
    return scale * (images @ (pair[0] - pair[1]))


def soft_levels(mos: Tensor, levels: int = 5) -> Tensor:
    """Probabilities [B, levels] that interpolate ``mos`` [B] in 0..1 between the two nearest of equidistant levels."""
    position = mos.clamp(0, 1) * (levels - 1)
    distance = (position[:, None] - torch.arange(levels, device=mos.device)).abs()
    weights: Tensor = F.relu(1 - distance)
    return weights


def plcc_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 - r`` with Pearson's r of two vectors [B]; in 0..2."""
    p, t = predicted - predicted.mean(), target - target.mean()
    return 1 - F.cosine_similarity(p, t, dim=0, eps=1e-6)


def ladder_loss(logits: Tensor, severities: Tensor, margin: float = 2.0) -> Tensor:
    """Hinge on neighbours of a ladder: ``logits`` and ``severities`` are [T, R], each row from best to worst.

    A step must lower the logit by ``margin`` times the step in severity (0..1).
    """
    fall = logits[:, :-1] - logits[:, 1:]
    wanted = margin * (severities[:, 1:] - severities[:, :-1])
    return F.relu(wanted - fall).mean()
