"""CoOp: learned context vectors before an antonym pair, all else frozen (the cross-dataset mode of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .features import FeatureBatch
from .losses import antonym_logit, ladder_loss, plcc_loss
from .model.prompts import encode_texts
from .model.tower import Tokenizer
from .objective import split_images


@dataclass(frozen=True)
class CoopConfig:
    """``tokens`` context vectors for each side of the pair; loss MSE on MOS, within-subset PLCC, ladders."""

    tokens: int = 4
    steps: int = 600
    merged: int = 4
    lr: float = 2e-3
    check_every: int = 50
    seed: int = 13


def learn_context(
    clip: nn.Module,
    tokenizer: Tokenizer,
    pair: tuple[str, str],
    perceptual: nn.Module,
    bank: Sequence[FeatureBatch],
    scale: float,
    config: CoopConfig,
    evaluate: Callable[[Tensor], float],
    log: Callable[[dict[str, float]], None],
) -> Tensor:
    """Context [2, tokens, W] for the positive and the negative prompt, at the step where ``evaluate(pair)`` was best.

    ``evaluate`` gets the embedded pair [2, D]. Starts from small random vectors, as CoOp does.
    """
    generator = torch.Generator().manual_seed(config.seed)
    width = int(clip.token_embedding.weight.shape[1])  # type: ignore[union-attr, index]
    context = (0.02 * torch.randn(2, config.tokens, width, generator=generator)).requires_grad_()
    optimizer = torch.optim.AdamW([context], config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    rng = np.random.default_rng(config.seed)
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        embedded = [F.normalize(perceptual(b.features), dim=-1) for b in bank]
    best, kept = -1.0, context.detach().clone()
    for step in range(1, config.steps + 1):
        texts = encode_texts(clip, tokenizer, pair, context)
        losses = []
        for chosen in rng.choice(len(bank), config.merged, replace=False):
            labels = bank[chosen].labels
            rated, ladders, _ = split_images(embedded[chosen], labels)
            mos, subset = torch.from_numpy(labels.mos), torch.from_numpy(labels.subset)
            score = torch.sigmoid(antonym_logit(rated, texts, scale))
            within = [plcc_loss(score[subset == k], mos[subset == k]) for k in subset.unique()]
            rungs = antonym_logit(ladders, texts, scale).view(labels.severities.shape)
            fall = ladder_loss(rungs, torch.from_numpy(labels.severities))
            losses.append(4 * F.mse_loss(score, mos) + torch.stack(within).mean() + plcc_loss(score, mos) + 3 * fall)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % config.check_every == 0:
            with torch.no_grad():
                reached = evaluate(encode_texts(clip, tokenizer, pair, context))
            log({"step": step, "loss": float(loss.detach()), "validation": reached})
            if reached > best:
                best, kept = reached, context.detach().clone()
    return kept
