"""What a perceptual embedding must satisfy: agree with opinions, fall along ladders, match sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .coop import Loss
from .data.batches import BatchLabels
from .data.descriptions import ANTONYMS, distortion_sentences, level_sentences, strength_of
from .features import FeatureBatch
from .losses import antonym_logit, image_to_text, ladder_loss, plcc_loss, soft_levels


def split_images(embedded: Tensor, labels: BatchLabels) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a batch [N, D] as (rated, ladders, captioned)."""
    rated, ladder = len(labels.mos), labels.severities.size
    first, second, third = embedded.split([rated, ladder, len(embedded) - rated - ladder])
    return first, second, third


class PerceptualObjective:
    """What the embedding of a tower must satisfy. Random wordings come from (seed, step).

    ``encode_text`` turns sentences into normalised embeddings [M, D].
    """

    def __init__(self, encode_text: Callable[[Sequence[str]], Tensor], seed: int) -> None:
        self._encode_text, self._seed = encode_text, seed

    def __call__(
        self, rated: Tensor, ladders: Tensor, labels: BatchLabels, scale: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Named losses for normalised embeddings of the rated photos [B, D] and of the ladders [T * R, D]."""
        rng = np.random.default_rng((self._seed, step, 1))
        levels = level_sentences(rng)
        antonyms = ANTONYMS[int(rng.integers(len(ANTONYMS)))]
        sentences, index = distortion_sentences(rng)
        texts = self._encode_text([*levels, *antonyms, *sentences])
        level_texts, pair, distortion_texts = texts[:5], texts[5:7], texts[7:]

        mos = torch.from_numpy(labels.mos)
        logit = antonym_logit(rated, pair, scale)
        score = torch.sigmoid(logit)
        centres = torch.linspace(0, 1, 5)
        level_logits = scale * rated @ level_texts.T
        expected = level_logits.softmax(1) @ centres
        subset = torch.from_numpy(labels.subset)
        within = [plcc_loss(score[subset == k], mos[subset == k]) for k in subset.unique()]

        shape = labels.severities.shape
        ladder_logit = antonym_logit(ladders, pair, scale).view(shape)
        ladder_expected = torch.logit((ladders @ level_texts.T * scale).softmax(1) @ centres, eps=1e-4).view(shape)
        severities = torch.from_numpy(labels.severities)
        return {
            "mos": 4 * F.mse_loss(score, mos) + 4 * F.mse_loss(expected, mos),
            "plcc": torch.stack(within).mean() + plcc_loss(score, mos) + plcc_loss(expected, mos),
            "levels": 0.5 * F.cross_entropy(level_logits, soft_levels(mos)),
            "ladder": 1.5 * (ladder_loss(ladder_logit, severities) + ladder_loss(ladder_expected, severities)),
            "distortion": 0.3 * image_to_text(ladders, distortion_texts, scale, _named(index, _graded(labels))),
        }


class RefiningObjective:
    """What a perceptual projector must satisfy on top of a tower that agrees with people already.

    Ladders that the tower ranks wrongly fall, distorted photos match their sentences (T_p), and the ranking of the
    rated photos stays: fitted to their opinions once more, a projector only learned the photos of the bank by heart.
    """

    def __init__(self, encode_text: Callable[[Sequence[str]], Tensor], seed: int) -> None:
        self._encode_text, self._seed = encode_text, seed
        self._pair = encode_text(ANTONYMS[0])

    def __call__(
        self, tower: Tensor, projected: Tensor, labels: BatchLabels, scale: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Named losses for a batch's normalised embeddings [N, D], of the tower and projected."""
        before, _, _ = split_images(tower, labels)
        rated, ladders, captioned = split_images(projected, labels)
        falling = antonym_logit(ladders, self._pair, scale).view(labels.severities.shape)
        kept = antonym_logit(rated, self._pair, scale), antonym_logit(before, self._pair, scale)
        sentences, index = distortion_sentences(np.random.default_rng((self._seed, step, 1)))
        graded = [
            *_graded(labels),
            *zip(labels.captioned_kinds, map(float, labels.captioned_severities), strict=True),
        ]
        distorted = torch.cat([ladders, captioned])
        return {
            "ladder": 3.0 * ladder_loss(falling, torch.from_numpy(labels.severities), margin=1.0),
            "kept": F.mse_loss(*kept),
            "distortion": 0.1 * image_to_text(distorted, self._encode_text(sentences), scale, _named(index, graded)),
        }


def context_loss(
    bank: Sequence[FeatureBatch], perceptual: nn.Module, scale: float, *, merged: int = 4, seed: int = 13
) -> Loss:
    """What a learned context must satisfy: opinions, their order within each subset, and falling ladders.

    The first of the pairs decides, on ``merged`` batches of the bank, drawn each step.
    """
    with torch.no_grad():
        embedded = [F.normalize(perceptual(b.features), dim=-1) for b in bank]

    def loss(pairs: Tensor, step: int) -> Tensor:
        parts = []
        for chosen in np.random.default_rng((seed, step)).choice(len(bank), merged, replace=False):
            labels = bank[chosen].labels
            rated, ladders, _ = split_images(embedded[chosen], labels)
            mos, subset = torch.from_numpy(labels.mos), torch.from_numpy(labels.subset)
            score = torch.sigmoid(antonym_logit(rated, pairs[0], scale))
            within = [plcc_loss(score[subset == k], mos[subset == k]) for k in subset.unique()]
            rungs = antonym_logit(ladders, pairs[0], scale).view(labels.severities.shape)
            fall = ladder_loss(rungs, torch.from_numpy(labels.severities))
            parts.append(4 * F.mse_loss(score, mos) + torch.stack(within).mean() + plcc_loss(score, mos) + 3 * fall)
        return torch.stack(parts).mean()

    return loss


def _graded(labels: BatchLabels) -> list[tuple[str, float]]:
    """(kind, severity) of every rung of the ladders."""
    return [(k, float(v)) for k, row in zip(labels.kinds, labels.severities, strict=True) for v in row]


def _named(index: Mapping[tuple[str, int], int], graded: Sequence[tuple[str, float]]) -> Tensor:
    """Which sentence names each distortion; the clean one is the first."""
    return torch.tensor([index[k, strength_of(v)] if v > 0 else 0 for k, v in graded])
