"""The tower's last layer once more, on what its frozen trunk finds in whole photos.

A trunk that has learned its photos by heart still finds more in a new one than the last layer, trained along with it,
makes of that. The same objective is met again with the trunk frozen: opinions on whole photos instead of crops, many
of them a step, and ladders and captions from a bank.
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
from .features import FeatureBatch
from .losses import image_to_text
from .objective import PerceptualObjective, split_images
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
