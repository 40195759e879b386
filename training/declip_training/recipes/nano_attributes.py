"""Ladders of the bundled engine's attributes, through the frozen tower once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from declip_training.attributes import ChangeLadders, measure
from declip_training.data.attributes import CHANGES
from declip_training.data.distortions import Pixels, ladder

SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
KINDS = tuple(CHANGES)
MEASURED = ("brightness", "contrast", "colorfulness")


@dataclass(frozen=True)
class LadderFeatures:
    """Tower features float32 [L, R, D], not normalised; ladder i is of kind ``i % len(KINDS)``; measures [L, 3]."""

    features: Tensor
    measured: Tensor

    def through(self, perceptual: nn.Module) -> ChangeLadders:
        """The same ladders as a projector sees them."""
        with torch.no_grad():
            embedded = F.normalize(perceptual(self.features.flatten(0, 1)), dim=-1).view_as(self.features)
        kinds = np.array([KINDS[i % len(KINDS)] for i in range(len(embedded))])
        measured = dict(zip(MEASURED, self.measured.T, strict=True))
        return ChangeLadders(embedded, kinds, torch.tensor((0.0, *SEVERITIES)), measured)


def ladder_features(
    windows: Sequence[Pixels],
    side: int,
    encode: Callable[[npt.NDArray[np.uint8]], Tensor],
    path: Path,
    report: Callable[[str], None],
) -> LadderFeatures:
    """One ladder of every kind from each of ``windows`` (uint8 [W, W, 3]), scaled to ``side`` and through ``encode``.

    Kept at ``path``, which names the tower, and read from there when it exists.
    """
    if not path.is_file():
        features, measured = [], []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for seed, window in enumerate(windows):

                def climb(kind: str, window: Pixels = window, seed: int = seed) -> npt.NDArray[np.uint8]:
                    return np.stack(ladder(window, side, CHANGES[kind], SEVERITIES, seed, stored=True))

                ladders = list(pool.map(climb, KINDS))
                values = measure(ladders[0][0])
                features += [encode(rungs) for rungs in ladders]
                measured += [[values[name] for name in MEASURED]] * len(KINDS)
                if (seed + 1) % 40 == 0:
                    report(f"ladders of attributes {seed + 1}/{len(windows)}")
        save_file({"features": torch.stack(features), "measured": torch.tensor(measured)}, path)
    return LadderFeatures(**load_file(path))
