"""Validation of the bundled engine's recipe: what its choices go by. Test and the judges' ladders are not read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from declip_training.data.biq2021 import Rated
from declip_training.data.distortions import DISTORTIONS, ladder
from declip_training.data.pixel_bank import load_square
from declip_training.evaluation.metrics import by_subset
from declip_training.files import replacing
from declip_training.recipes.nano_data import LADDER_SIDES, SIDE
from declip_training.recipes.nano_settings import LADDER_PHOTOS, LADDER_SEVERITIES


@dataclass(frozen=True)
class ValidationFeatures:
    """Float32: ``rated`` [N, D] of the validation photos, ``ladders`` [L, R, D], best rung first.

    Row i of ``ladders`` is of the kind ``i % len(DISTORTIONS)``.
    """

    rated: Tensor
    ladders: Tensor


class ValidationSplit:
    """That of BIQ2021's Train, its photos whole as ``pixels`` uint8 [N, S, S, 3], and Kodak's ``sharp`` ones."""

    def __init__(self, photos: Sequence[Rated], pixels: npt.NDArray[np.uint8], sharp: Sequence[Path]) -> None:
        self.mos = np.array([p.mos for p in photos])
        self.subsets = [p.subset for p in photos]
        self.pixels = pixels
        self._paths, self._sharp = [p.path for p in photos], sharp

    def features(self, see: Callable[[npt.NDArray[np.uint8]], Tensor], path: Path) -> ValidationFeatures:
        """What ``see`` finds ([N, S, S, 3] to [N, D]) in whole photos and in ladders, kept at ``path``.

        The ladders are training's distortions, graded evenly.

        Ladders start from the best of the validation photos and from Kodak's, which are sharper than these, from files
        larger and smaller than what the tower sees.
        """
        if not path.is_file():
            best = [self._paths[i] for i in np.argsort(-self.mos)[:LADDER_PHOTOS]]
            ladders = []
            for seed, photo in enumerate([*best, *self._sharp]):
                for side, kind in product(LADDER_SIDES, DISTORTIONS):
                    file = load_square(photo, side)
                    rungs = np.stack(ladder(file, SIDE, DISTORTIONS[kind], LADDER_SEVERITIES, seed, stored=True))
                    ladders.append(see(rungs))
            with replacing(path) as partial:
                save_file({"rated": see(self.pixels), "ladders": torch.stack(ladders)}, partial)
        return ValidationFeatures(**load_file(path))

    def by_subset(self, scores: npt.NDArray[np.floating]) -> dict[str, float]:
        """SRCC of ``scores`` [N] with the opinions: by subset, their mean, pooled."""
        return by_subset(scores, self.mos, self.subsets)

    @torch.no_grad()
    def agreement(
        self, perceptual: nn.Module, features: ValidationFeatures, pairs: Tensor, scale: float = 1.0
    ) -> dict[str, float]:
        """SRCC on validation by subset, Spearman of ladders (mean of all, and of the worst kind), and ``choice``.

        That is the mean of the subsets' SRCC and of the ladders'.

        ``pairs`` is [2, D] or [P, 2, D], averaged at ``scale``.
        """
        pairs = pairs.view(-1, 2, pairs.shape[-1])

        def score(x: Tensor) -> npt.NDArray[np.float32]:
            embedded = F.normalize(perceptual(x), dim=-1)
            averaged: npt.NDArray[np.float32] = (
                torch.sigmoid(scale * embedded @ (pairs[:, 0] - pairs[:, 1]).T).mean(-1).numpy()
            )
            return averaged

        result = self.by_subset(score(features.rated))
        order = np.arange(features.ladders.shape[1])
        each = np.array([stats.spearmanr(order, -rungs).statistic for rungs in score(features.ladders)])
        result["ladder"] = float(each.mean())
        result["worst"] = float(each.reshape(-1, len(DISTORTIONS)).mean(axis=0).min())
        result["choice"] = (result["mean"] + result["ladder"]) / 2
        return {k: round(v, 4) for k, v in result.items()}
