"""Training of the two projectors on a feature bank (arXiv 2503.02206, section 3.2); both towers stay frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bank_fit import BankConfig, fit_on_bank
from .data.descriptions import ANTONYMS
from .features import FeatureBatch
from .losses import antonym_logit, image_to_text
from .model.projector import Projector
from .objective import RefiningObjective, split_images

LEFT = 0.02
"""What it costs a perceptual projector, of its choice, that all captions are still found."""

TextEncoder = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class ProjectorConfig(BankConfig):
    """The schedule of the bundled engine's projectors.

    ``lr`` is the perceptual one's, ``semantic_lr`` that of the other, which learns 3,840 captions by heart at the rate
    of the first. ``silent`` is how dearly its embeddings may tell good photos from bad.
    """

    steps: int = 900
    merged: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    check_every: int = 100
    seed: int = 11
    semantic_lr: float = 3e-4
    silent: float = 0.5


def cached(encode: TextEncoder) -> TextEncoder:
    """A frozen text tower needs to see each sentence once."""
    known: dict[str, Tensor] = {}

    def encode_cached(sentences: Sequence[str]) -> Tensor:
        new = [s for s in dict.fromkeys(sentences) if s not in known]
        if new:
            with torch.no_grad():
                known.update(zip(new, encode(new), strict=True))
        return torch.stack([known[s] for s in sentences])

    return encode_cached


def train_projectors(
    bank: Sequence[FeatureBatch],
    encode_text: TextEncoder,
    scale: float,
    config: ProjectorConfig,
    evaluate: Callable[[nn.Module], dict[str, float]],
    log: Callable[[dict[str, float]], None],
) -> tuple[Projector, Projector]:
    """Return the (perceptual, semantic) projectors.

    The perceptual one is that of the step at which ``evaluate(perceptual)["choice"]``, less what captions still find,
    was best. It meets the refining objective, whose sentences are T_p; step 0, the identity, takes part in the choice.
    The semantic one meets eq. 7 with the captions T_s, on photos that are distorted at random, and finds all rated
    photos equally good, to the end: what is best for the other says nothing of it.
    """
    torch.manual_seed(config.seed)
    dim = bank[0].features.shape[1]
    perceptual, semantic = Projector(dim), Projector(dim)
    encode = cached(encode_text)
    objective = RefiningObjective(encode, config.seed)
    factor = torch.tensor(scale)
    parameters = [
        {"params": list(perceptual.parameters()), "lr": config.lr},
        {"params": list(semantic.parameters()), "lr": config.semantic_lr},
    ]
    pair = encode(ANTONYMS[0])

    def losses(batch: FeatureBatch, number: int, rng: np.random.Generator) -> dict[str, Tensor]:
        features, labels = batch.features, batch.labels
        tower, projected = F.normalize(features, dim=-1), F.normalize(perceptual(features), dim=-1)
        found = objective(tower, projected, labels, factor, number)
        rated, _, captioned = split_images(features, labels)
        content, said = (F.normalize(semantic(some), dim=-1) for some in (captioned, rated))
        found["semantic"] = image_to_text(content, encode(labels.captions), factor)
        found["silent"] = config.silent * antonym_logit(said, pair, factor).var(correction=0)
        return found

    def judge(module: nn.Module) -> dict[str, float]:
        reached, left = evaluate(module), content_left(module, bank, encode)
        return {**reached, "content": left, "choice": reached["choice"] - LEFT * left}

    return fit_on_bank(perceptual, parameters, bank, losses, config, judge, log), semantic


@torch.no_grad()
def content_left(projector: nn.Module, bank: Sequence[FeatureBatch], encode: TextEncoder) -> float:
    """Share of the captioned photos whose own caption is among the nearest 5 of those in their batch."""
    found = []
    for batch in bank:
        images = F.normalize(projector(split_images(batch.features, batch.labels)[2]), dim=-1)
        similar = images @ encode(batch.labels.captions).T
        nearest = similar.topk(min(5, similar.shape[1]), dim=1).indices
        found.append((nearest == torch.arange(len(images))[:, None]).any(dim=1))
    return float(torch.cat(found).float().mean())
