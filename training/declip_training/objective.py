"""What a perceptual embedding must satisfy: agree with opinions, fall along ladders, match sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data.batches import BatchLabels
from .data.descriptions import ANTONYMS, distortion_sentences, level_sentences, strength_of
from .losses import antonym_logit, image_to_text, ladder_loss, plcc_loss, soft_levels


def split_images(embedded: Tensor, labels: BatchLabels) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a batch [N, D] as (rated, ladders, captioned)."""
    rated, ladder = len(labels.mos), labels.severities.size
    first, second, third = embedded.split([rated, ladder, len(embedded) - rated - ladder])
    return first, second, third


class PerceptualObjective:
    """What a perceptual embedding must satisfy; used for the tower and again for the perceptual projector.

    ``encode_text`` turns sentences into normalised embeddings [M, D]. Random wordings come from (seed, step).
    """

    def __init__(self, encode_text: Callable[[Sequence[str]], Tensor], seed: int) -> None:
        self._encode_text, self._seed = encode_text, seed

    def __call__(
        self,
        rated: Tensor,
        ladders: Tensor,
        labels: BatchLabels,
        scale: Tensor,
        step: int,
        captioned: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named losses for normalised embeddings of the rated photos [B, D] and of the ladders [T * R, D].

        ``captioned`` [C, D], where given, joins the ladders in telling distortions apart.
        """
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
        graded = [(k, float(v)) for k, row in zip(labels.kinds, labels.severities, strict=True) for v in row]
        distorted = ladders
        if captioned is not None:
            distorted = torch.cat([ladders, captioned])
            graded += zip(labels.captioned_kinds, map(float, labels.captioned_severities), strict=True)
        named = torch.tensor([index[k, strength_of(v)] if v > 0 else 0 for k, v in graded])
        return {
            "mos": 4 * F.mse_loss(score, mos) + 4 * F.mse_loss(expected, mos),
            "plcc": torch.stack(within).mean() + plcc_loss(score, mos) + plcc_loss(expected, mos),
            "levels": 0.5 * F.cross_entropy(level_logits, soft_levels(mos)),
            "ladder": 1.5 * (ladder_loss(ladder_logit, severities) + ladder_loss(ladder_expected, severities)),
            "distortion": 0.3 * image_to_text(distorted, distortion_texts, scale, named),
        }
