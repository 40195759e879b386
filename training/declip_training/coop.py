"""CoOp: learned context vectors in antonym pairs, all else frozen (arXiv 2503.02206, cross-dataset; its ref. [66])."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import TrainingError

from .losses import antonym_logit, plcc_loss
from .model.text_encoding import ContextPosition, encode_texts, for_each_text, token_embedding
from .model.tower import Tokenizer

Sharing = Literal["shared", "side", "prompt"]
Loss = Callable[[Tensor, int], Tensor]
"""Scalar of the embedded pairs float32 [P, 2, D] and the step, counted from 1."""


@dataclass(frozen=True)
class CoopConfig:
    """What is learned and for how long.

    ``tokens`` vectors stand at ``position``; ``words``, where given, are what they start from, one vector a token of
    theirs, instead of ``tokens`` small random ones. ``context`` says what has one of its own: all prompts together
    ("shared"), the positive ones and the negative ones ("side"), or each ("prompt").
    """

    tokens: int = 4
    position: ContextPosition = "before"
    context: Sharing = "side"
    words: str = ""
    steps: int = 600
    lr: float = 2e-3
    check_every: int = 50
    seed: int = 13

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.steps < 1 or self.check_every < 1 or not 0 < self.lr < math.inf:
            raise TrainingError("CoOp needs at least one token, one step and a learning rate above 0.")
        if self.seed < 0:
            raise TrainingError(f"the seed is {self.seed}. Choose 0 or more.")
        if self.words and not self.words.strip():
            raise TrainingError("there are no words to start from, only spaces. Give some, or leave them out.")


def learn_context(
    clip: nn.Module,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    config: CoopConfig,
    loss: Loss,
    evaluate: Callable[[Tensor], float],
    log: Callable[[dict[str, float]], None],
) -> Tensor:
    """Context [M, W], [2, M, W] or [P, 2, M, W], as ``config.context`` says, at the step where ``evaluate`` was best.

    The axis of two is positive and negative, P are the ``pairs``. ``evaluate`` gets the embedded pairs, as ``loss``
    does, and returns a number whose largest value is chosen. AdamW with a cosine rate. Raises TrainingError where the
    loss is no longer finite, ExportError where ``require_room`` does.
    """
    context = _start(clip, tokenizer, len(pairs), config).requires_grad_()
    optimizer = torch.optim.AdamW([context], config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)

    def embed() -> Tensor:
        return _embed(clip, tokenizer, pairs, context, config.position)

    best, kept = -float("inf"), context.detach().clone()
    for step in range(1, config.steps + 1):
        value = loss(embed(), step)
        if not torch.isfinite(value):
            raise TrainingError(f"the loss of CoOp is {float(value.detach())} at step {step}. Lower the learning rate.")
        (context.grad,) = torch.autograd.grad(value, context)  # the towers get no gradients
        optimizer.step()
        schedule.step()
        if step % config.check_every == 0 or step == config.steps:
            with torch.no_grad():
                reached = evaluate(embed())
            log({"step": step, "loss": float(value.detach()), "validation": reached})
            if reached > best:
                best, kept = reached, context.detach().clone()
    return kept


def require_room(clip: nn.Module, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], config: CoopConfig) -> None:
    """Raise ExportError where the text tower takes no context, or has no room for one beside these prompts."""
    with torch.no_grad():
        _embed(clip, tokenizer, pairs, _start(clip, tokenizer, len(pairs), config), config.position)


def opinion_loss(features: Tensor, mos: Tensor, scale: float, *, batch: int, plcc: float = 0.0, seed: int = 13) -> Loss:
    """MSE of eq. 8 against opinion scores, plus ``plcc`` times 1 - Pearson's r, on ``batch`` photos drawn each step.

    ``features`` float32 [N, D] are normalised perceptual embeddings, ``mos`` float32 [N] in 0..1; several pairs are
    averaged.
    """

    def loss(pairs: Tensor, step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        chosen = torch.from_numpy(rng.choice(len(features), min(batch, len(features)), replace=False))
        score, target = pair_scores(features[chosen], pairs, scale), mos[chosen]
        total = F.mse_loss(score, target)
        return total + plcc * plcc_loss(score, target) if plcc else total

    return loss


def pair_scores(features: Tensor, pairs: Tensor, scale: float) -> Tensor:
    """Raw scores [N] of normalised embeddings [N, D]: the mean of eq. 8 over ``pairs`` [P, 2, D]."""
    return torch.stack([torch.sigmoid(antonym_logit(features, pair, scale)) for pair in pairs]).mean(0)


def _embed(
    clip: nn.Module,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    context: Tensor,
    position: ContextPosition,
) -> Tensor:
    """Embedded pairs float32 [P, 2, D]."""
    texts = [text for pair in pairs for text in pair]
    return encode_texts(clip, tokenizer, texts, for_each_text(context, len(pairs)), position).view(len(pairs), 2, -1)


def _start(clip: nn.Module, tokenizer: Tokenizer, pairs: int, config: CoopConfig) -> Tensor:
    weight = token_embedding(clip)
    several = {"shared": (), "side": (2,), "prompt": (pairs, 2)}[config.context]
    if config.words:
        encode = getattr(tokenizer, "encode", None)
        if encode is None:
            raise TrainingError("initial words need open_clip's own tokenizer. Leave them out with this text tower.")
        start = weight[torch.tensor(encode(config.words), device=weight.device)].detach().float()
        return start.expand(*several, *start.shape).clone()
    generator = torch.Generator().manual_seed(config.seed)
    return 0.02 * torch.randn((*several, config.tokens, weight.shape[1]), generator=generator)
