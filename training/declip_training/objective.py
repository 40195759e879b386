"""What a perceptual embedding must satisfy: agree with opinions, fall along ladders, match sentences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .coop import Loss
from .data.attributes import ATTRIBUTES, CHANGES, MEASURED
from .data.batches import BatchLabels
from .data.descriptions import ANTONYMS, distortion_sentences, level_sentences, strength_of
from .data.distortions import DISTORTIONS
from .features import FeatureBatch
from .losses import antonym_logit, image_to_text, indifference, ladder_loss, plcc_loss, soft_levels

ATTRIBUTE_WORDS = tuple(word for attribute in ATTRIBUTES for word in attribute.pair)
RISE = 3.0
"""How far an attribute's logit shall move over a severity of 1."""
STILL = 0.3
"""How far the logits of the others may."""


def split_images(embedded: Tensor, labels: BatchLabels) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a batch [N, D] as (rated, ladders, captioned)."""
    rated, ladder = len(labels.mos), labels.severities.size
    first, second, third = embedded.split([rated, ladder, len(embedded) - rated - ladder])
    return first, second, third


class PerceptualObjective:
    """What the embedding of a tower must satisfy. Random wordings come from (seed, step).

    ``encode_text`` turns sentences into normalised embeddings [M, D]. ``kinds`` are the distortions that occur.
    """

    def __init__(
        self, encode_text: Callable[[Sequence[str]], Tensor], seed: int, kinds: Collection[str] = tuple(DISTORTIONS)
    ) -> None:
        self._encode_text, self._seed, self._kinds = encode_text, seed, kinds

    def __call__(
        self, rated: Tensor, ladders: Tensor, labels: BatchLabels, scale: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Named losses for normalised embeddings of the rated photos [B, D] and of the ladders [T * R, D]."""
        rng = np.random.default_rng((self._seed, step, 1))
        levels = level_sentences(rng)
        antonyms = ANTONYMS[int(rng.integers(len(ANTONYMS)))]
        sentences, index = distortion_sentences(rng, self._kinds)
        words = len(ATTRIBUTE_WORDS)
        texts = self._encode_text([*levels, *antonyms, *ATTRIBUTE_WORDS, *sentences])
        level_texts, pair, distortion_texts = texts[:5], texts[5:7], texts[7 + words :]
        axes = directions(texts[7 : 7 + words])

        mos = torch.from_numpy(labels.mos).to(rated.device)
        logit = antonym_logit(rated, pair, scale)
        score = torch.sigmoid(logit)
        level_logits = scale * rated @ level_texts.T
        expected = _expected(level_logits)
        within = within_subsets(score, mos, labels.subset)

        falling, severities = worsening(ladders, labels)
        ladder_logit = antonym_logit(falling, pair, scale)
        ladder_expected = torch.logit(_expected(falling @ level_texts.T * scale), eps=1e-4)
        return {
            "mos": 4 * F.mse_loss(score, mos) + 4 * F.mse_loss(expected, mos),
            "plcc": within + plcc_loss(score, mos) + plcc_loss(expected, mos),
            "levels": 0.5 * F.cross_entropy(level_logits, soft_levels(mos)),
            "ladder": 1.5 * (ladder_loss(ladder_logit, severities) + ladder_loss(ladder_expected, severities)),
            "distortion": 0.3
            * image_to_text(
                falling.flatten(0, 1), distortion_texts, scale, _named(index, _graded(labels)).to(rated.device)
            ),
            "attributes": attribute_movements(scale * ladders @ axes, labels),
            "measured": 0.3 * _measured(rated @ axes, torch.from_numpy(labels.measured).to(rated.device)),
        }


class RefiningObjective:
    """What a perceptual projector must satisfy on top of a tower that agrees with people already.

    Ladders that the tower ranks wrongly fall, distorted photos match their sentences (T_p), and captions (T_s) are all
    alike: what a photo shows is for the semantic projector. The ranking of the rated photos and what the embedding says
    of attributes stay: fitted to their opinions once more, a projector only learned the photos of the bank by heart.
    """

    def __init__(self, encode_text: Callable[[Sequence[str]], Tensor], seed: int) -> None:
        self._encode_text, self._seed = encode_text, seed
        self._pair, self._axes = encode_text(ANTONYMS[0]), directions(encode_text(ATTRIBUTE_WORDS))

    def __call__(
        self, tower: Tensor, projected: Tensor, labels: BatchLabels, scale: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Named losses for a batch's normalised embeddings [N, D], of the tower and projected."""
        before, _, _ = split_images(tower, labels)
        rated, ladders, captioned = split_images(projected, labels)
        falling, severities = worsening(ladders, labels)
        kept = antonym_logit(rated, self._pair, scale), antonym_logit(before, self._pair, scale)
        axes = scale * projected @ self._axes, scale * tower @ self._axes
        sentences, index = distortion_sentences(np.random.default_rng((self._seed, step, 1)))
        graded = [
            *_graded(labels),
            *zip(labels.captioned_kinds, map(float, labels.captioned_severities), strict=True),
        ]
        distorted = torch.cat([falling.flatten(0, 1), captioned])
        return {
            "ladder": 3.0 * ladder_loss(antonym_logit(falling, self._pair, scale), severities, margin=1.0),
            "kept": 4.0 * F.mse_loss(*kept) + 2.0 * F.mse_loss(*axes),
            "content": indifference(captioned, self._encode_text(labels.captions), scale),
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
            mos = torch.from_numpy(labels.mos)
            score = torch.sigmoid(antonym_logit(rated, pairs[0], scale))
            within = within_subsets(score, mos, labels.subset)
            falling, severities = worsening(ladders, labels)
            fall = ladder_loss(antonym_logit(falling, pairs[0], scale), severities)
            parts.append(4 * F.mse_loss(score, mos) + within + plcc_loss(score, mos) + 3 * fall)
        return torch.stack(parts).mean()

    return loss


def attribute_movements(logits: Tensor, labels: BatchLabels) -> Tensor:
    """Each ladder moves the attributes that it is made to move, and no others; a scalar.

    ``logits`` [T * R, A] of ATTRIBUTES for the images of all ladders. What a kind outside CHANGES does to attributes is
    not clear, so it is free to.
    """
    kinds = [i for i, kind in enumerate(labels.kinds) if kind in CHANGES]
    if not kinds:
        return logits.sum() * 0
    rungs = logits.view(*labels.severities.shape, -1)[kinds]
    severities = torch.from_numpy(labels.severities)[kinds].to(logits.device)
    effects = [
        [(float(a.moved_by.get(labels.kinds[i], 0)), float(a.left_by(labels.kinds[i]))) for a in ATTRIBUTES]
        for i in kinds
    ]
    signs, left = torch.tensor(effects, device=logits.device).unbind(-1)
    wanted = RISE * severities.diff(dim=1)[..., None]
    short = F.relu(wanted - signs[:, None] * rungs.diff(dim=1)).mean(1)
    strayed = F.relu((rungs[:, 1:] - rungs[:, :1]).abs() - STILL).mean(1)
    own = signs != 0
    return 4 * (short * own).sum() / own.sum().clamp(min=1) + (strayed * left).sum() / left.sum().clamp(min=1)


def _measured(logits: Tensor, measured: Tensor) -> Tensor:
    """How far the order of photos by an attribute [B, A] is from that by what is measured [B, 3], mean of 1 - r."""
    names = [attribute.name for attribute in ATTRIBUTES]
    return torch.stack([plcc_loss(logits[:, names.index(n)], measured[:, i]) for i, n in enumerate(MEASURED)]).mean()


def within_subsets(scores: Tensor, mos: Tensor, subset: npt.NDArray[np.int64]) -> Tensor:
    """Mean over the subsets of ``plcc_loss`` in each."""
    members = [torch.from_numpy(np.flatnonzero(subset == k)).to(scores.device) for k in np.unique(subset)]
    return torch.stack([plcc_loss(scores[rows], mos[rows]) for rows in members]).mean()


def _expected(level_logits: Tensor) -> Tensor:
    """Mean of 0..1 that logits [..., levels] expect, in FP32: a product would be bf16, in which the logit of 1 - 1e-4
    is infinite.
    """
    levels = torch.linspace(0, 1, level_logits.shape[-1], device=level_logits.device)
    return (level_logits.float().softmax(-1) * levels).sum(-1)


def directions(words: Tensor) -> Tensor:
    """Directions [D, A] of ATTRIBUTES from their embedded words [2 A, D]."""
    return (words[0::2] - words[1::2]).T


def worsening(ladders: Tensor, labels: BatchLabels) -> tuple[Tensor, Tensor]:
    """Of ladders [T * R, D] those of distortions, [W, R, D], and their severities [W, R]."""
    worse = [i for i, kind in enumerate(labels.kinds) if kind in DISTORTIONS]
    severities = torch.from_numpy(labels.severities[worse]).to(ladders.device)
    return ladders.view(*labels.severities.shape, -1)[worse], severities


def _graded(labels: BatchLabels) -> list[tuple[str, float]]:
    """(kind, severity) of every rung of the ladders of distortions."""
    return [
        (kind, float(v))
        for kind, row in zip(labels.kinds, labels.severities, strict=True)
        if kind in DISTORTIONS
        for v in row
    ]


def _named(index: Mapping[tuple[str, int], int], graded: Sequence[tuple[str, float]]) -> Tensor:
    """Which sentence names each distortion; the clean one is the first."""
    return torch.tensor([index[k, strength_of(v)] if v > 0 else 0 for k, v in graded])
