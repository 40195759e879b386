"""Opinions without their noise: what a larger model says of each photo, having seen the opinions on all others.

Each opinion is the mean of some thirty people's, and a tower learns by heart what is chance in it. A teacher who never
saw a photo's own opinion cannot: it looks at every photo through frozen networks larger than the tower, all pixels of
it, and regresses opinions on what they find with a Gaussian kernel. The tower then learns from a mix of both
(distillation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from .arithmetic import CPU, autocast
from .files import replacing
from .model.imagenet_start import MEAN, STD, PublicWeights, imagenet_network
from .model.nano_tower import statistics

WIDTH = 0.5
"""Of the kernel: exp(-WIDTH * mean squared difference of standardised features)."""
RIDGE = 0.6
FOLDS = 5
SAME_TIME = 32


@torch.no_grad()
def depth_features(
    weights: PublicWeights,
    pixels: npt.NDArray[np.uint8],
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    device: torch.device = CPU,
) -> list[Tensor]:
    """Of each depth of a frozen network, means and deviations over the photo, float32 [N, 2 C]; its head's means last.

    ``pixels`` uint8 [N, S, S, 3]. Kept at ``path`` and read from there when it exists; computed on ``device``.
    """
    if not path.is_file():
        network = imagenet_network(weights.network, weights.read()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows: list[list[Tensor]] = []
        for start in range(0, len(pixels), SAME_TIME):
            images = torch.from_numpy(np.array(pixels[start : start + SAME_TIME])).to(device).permute(0, 3, 1, 2)
            maps = ((images.float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)
            depths = []
            with autocast(device):
                maps = F.relu6(network.conv_stem(maps))
                for stage in network.blocks:
                    maps = stage(maps)
                    depths.append(torch.cat(statistics(maps), dim=1))
                depths.append(F.relu6(network.conv_head(maps)).float().mean((2, 3)))
            rows.append([depth.cpu() for depth in depths])
            progress(min(start + SAME_TIME, len(pixels)), len(pixels))
        made = {f"{depth:02d}": torch.cat(parts) for depth, parts in enumerate(zip(*rows, strict=True))}
        with replacing(path) as partial:
            save_file(made, partial)
    stored = load_file(path)
    return [stored[name] for name in sorted(stored)]


def kernel(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Float32 [N, M], 1 for equal photos: ``features`` are [N, C] of each depth, ``others`` [M, C] alike.

    Every depth counts alike, whatever its number of channels. Both are standardised by ``features``.
    """
    total = torch.zeros(len(features[0]), len(others[0]))
    for left, right in zip(features, others, strict=True):
        centre, spread = left.mean(0), left.std(0) + 1e-6
        a, b = (((x - centre) / spread).clamp(-6, 6) for x in (left, right))
        apart = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        total += apart.clamp(min=0) / a.shape[1]
    return torch.exp(-WIDTH / len(features) * total)


def regressed(known: Tensor, opinions: Tensor, asked: Tensor) -> Tensor:
    """Kernel ridge regression: opinions [M] on photos with the kernel ``asked`` [M, N] to those of ``known`` [N, N]."""
    mean = opinions.mean()
    solved: Tensor = torch.linalg.solve(known + RIDGE * torch.eye(len(known)), (opinions - mean)[:, None])
    return (asked @ solved)[:, 0] + mean


def cross_fitted(similar: Tensor, opinions: Tensor, *, seed: int) -> Tensor:
    """What the teacher says of each photo, float32 [N], not knowing its opinion: each fifth is left out in turn.

    ``similar`` [N, N] is the photos' kernel.
    """
    fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(opinions)) % FOLDS)
    said = torch.empty_like(opinions)
    for left_out in range(FOLDS):
        asked, known = fold == left_out, fold != left_out
        said[asked] = regressed(similar[known][:, known], opinions[known], similar[asked][:, known])
    return said
