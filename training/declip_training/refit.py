"""The tower's last layer once more, on what its frozen trunk finds in whole photos.

A trunk that has learned its photos by heart still finds more in a new one than the last layer, trained along with it,
makes of that. `refit` meets the same objective again with the trunk frozen: opinions on whole photos instead of crops,
many of them a step, and ladders and captions from a bank. `reorder` then asks for order alone, in one direction.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bank_fit import BankConfig, fit_on_bank
from .data.descriptions import ANTONYMS
from .features import FeatureBatch
from .losses import antonym_logit, image_to_text, ladder_loss
from .objective import ATTRIBUTE_WORDS, PerceptualObjective, directions, split_images, within_subsets, worsening
from .projectors import TextEncoder, cached


@dataclass(frozen=True)
class RefitConfig(BankConfig):
    """Each step sees ``rated`` photos beside its batches. No weight decay: the start is worth more than zero."""

    steps: int = 1500
    merged: int = 4
    lr: float = 3e-4
    weight_decay: float = 0.0
    check_every: int = 100
    seed: int = 12
    rated: int = 512


@dataclass(frozen=True)
class RatedFeatures:
    """Of N whole photos: the trunk's ``features`` float32 [N, F], opinions ``mos`` float32 [N] in 0..1, ``subset``
    int64 [N], and what is ``measured`` float32 [N, 3] (MEASURED)."""

    features: Tensor
    mos: npt.NDArray[np.float32]
    subset: npt.NDArray[np.int64]
    measured: npt.NDArray[np.float32]


def refit(
    head: nn.Module,
    photos: RatedFeatures,
    bank: Sequence[FeatureBatch],
    encode_text: TextEncoder,
    scale: float,
    config: RefitConfig,
    evaluate: Callable[[nn.Module], dict[str, float]],
    log: Callable[[dict[str, float]], None],
) -> nn.Module:
    """A copy of ``head`` ([N, F] to embeddings [N, D]) from the step at which ``evaluate(head)["choice"]`` was best.

    ``head`` as it is takes part in the choice. ``bank`` holds features of the trunk too; its own rated photos are not
    used.
    """
    torch.manual_seed(config.seed)
    fitted = copy.deepcopy(head).eval().requires_grad_(True)
    encode = cached(encode_text)
    objective = PerceptualObjective(encode, config.seed)
    factor = torch.tensor(scale)

    def losses(batch: FeatureBatch, number: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.choice(len(photos.mos), min(config.rated // config.merged, len(photos.mos)), replace=False)
        rated = F.normalize(fitted(photos.features[rows]), dim=-1)
        _, *others = split_images(batch.features, batch.labels)
        ladders, captioned = (F.normalize(fitted(features), dim=-1) for features in others)
        labels = replace(batch.labels, mos=photos.mos[rows], subset=photos.subset[rows], measured=photos.measured[rows])
        found = objective(rated, ladders, labels, factor, number)
        found["semantic"] = 0.3 * image_to_text(captioned, encode(batch.labels.captions), factor)
        return found

    return fit_on_bank(fitted, fitted.parameters(), bank, losses, config, evaluate, log).requires_grad_(False)


@dataclass(frozen=True)
class ReorderConfig(BankConfig):
    """``rated`` photos beside each batch; a share ``dropped`` of the features at random, as each of them tells little;
    ``kept`` is how dearly a photo's logit may move.
    """

    steps: int = 600
    merged: int = 8
    lr: float = 3e-3
    weight_decay: float = 0.02
    check_every: int = 100
    seed: int = 14
    rated: int = 512
    dropped: float = 0.3
    kept: float = 0.1


def reorder(
    head: nn.Module,
    photos: RatedFeatures,
    bank: Sequence[FeatureBatch],
    encode_text: TextEncoder,
    scale: float,
    config: ReorderConfig,
    evaluate: Callable[[nn.Module], dict[str, float]],
    log: Callable[[dict[str, float]], None],
) -> nn.Module:
    """A copy of ``head`` ([N, F] to [N, D], linear) whose embeddings lean more or less towards the antonyms.

    By how much is a weighted sum of the features that puts the rated photos in the order of their opinions, within
    each subset, and makes ladders fall. Squared errors, in `refit`, pay for the level of a score what they could have
    paid for its order. Attributes' logits stay: the lean is at right angles to their words. ``head`` as it is takes
    part in the choice by ``evaluate(head)["choice"]``.
    """
    torch.manual_seed(config.seed)
    with torch.no_grad():
        pair, axes = encode_text(ANTONYMS[0]), directions(encode_text(ATTRIBUTE_WORDS))
        leaning = _Leaning(head, _apart(pair[0] - pair[1], axes), photos.features, scale, config.dropped)
        before = antonym_logit(F.normalize(head(photos.features), dim=-1), pair, scale)
    mos = torch.from_numpy(photos.mos)

    def losses(batch: FeatureBatch, number: int, rng: np.random.Generator) -> dict[str, Tensor]:
        def logit(features: Tensor) -> Tensor:
            return antonym_logit(F.normalize(leaning(features), dim=-1), pair, scale)

        rows = rng.choice(len(mos), min(config.rated, len(mos)), replace=False)
        rated = logit(photos.features[rows])
        falling, severities = worsening(split_images(batch.features, batch.labels)[1], batch.labels)
        return {
            "order": within_subsets(rated, mos[rows], photos.subset[rows]),
            "ladder": ladder_loss(logit(falling.flatten(0, 1)).view(severities.shape), severities, margin=1.0),
            "kept": config.kept * (rated - before[rows]).var(correction=0),
        }

    def found(fitted: _Leaning) -> dict[str, float]:
        return evaluate(fitted.folded())

    return fit_on_bank(leaning, [leaning.free], bank, losses, config, found, log).folded()


class _Leaning(nn.Module):
    """A linear ``head`` plus a weighted sum of ``features`` along one ``direction`` [D] of unit length.

    The sum is of features of mean 0 and equal spread; one of 1 moves a logit at ``scale`` by about 1. Those that hardly
    vary stay so: made equal, they would bring weights that no half precision bears. Its weights are such that what the
    means would add is 0, as a head without a bias has no place for it.
    """

    def __init__(self, head: nn.Module, direction: Tensor, features: Tensor, scale: float, dropped: float) -> None:
        super().__init__()
        self.head = copy.deepcopy(head).eval().requires_grad_(False)
        self.direction = direction * head(features).norm(dim=-1).mean() / scale
        spread = features.std(dim=0)
        self.mean, self.spread = features.mean(dim=0), spread.clamp(min=float(spread.mean()) / 4)
        self.free = nn.Parameter(torch.zeros(features.shape[1]))
        self.drop = nn.Dropout(dropped)

    def weights(self) -> Tensor:
        """Of the features, in units of their spread [F]."""
        shift = F.normalize(self.mean / self.spread, dim=0)
        return self.free - (self.free @ shift) * shift

    def forward(self, features: Tensor) -> Tensor:
        lean: Tensor = self.drop((features - self.mean) / self.spread) @ self.weights()
        leaning: Tensor = self.head(features) + lean[:, None] * self.direction
        return leaning

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The same without dropping, as a head of the form that it was."""
        head = copy.deepcopy(self.head)
        (linear,) = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
        linear.weight += torch.outer(self.direction, self.weights() / self.spread)
        return head


def _apart(direction: Tensor, axes: Tensor) -> Tensor:
    """The part of ``direction`` [D] at right angles to all ``axes`` [D, A], at unit length."""
    basis, _ = torch.linalg.qr(axes)
    return F.normalize(direction - basis @ (basis.T @ direction), dim=0)
