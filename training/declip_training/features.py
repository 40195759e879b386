"""Feature bank: the frozen tower runs once, training touches only its embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from declip_runtime.errors import TrainingError

from .arithmetic import autocast
from .data.batches import Batch, BatchLabels, BatchSource
from .model.tower import image_features
from .pixels import to_input


@dataclass(frozen=True)
class FeatureBatch:
    """A batch whose pixels became ``features`` float32 [N, D] of the frozen tower, not normalised, in their order."""

    features: Tensor
    labels: BatchLabels


@torch.no_grad()
def tower_features(
    visual: nn.Module, pixels: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Embeddings float32 [N, D] (not normalised) of uint8 [N, S, S, 3], 64 at a time, where ``visual`` is.

    They come back to the CPU.
    """
    device = next(visual.parameters()).device
    rows = []
    for start in range(0, len(pixels), 64):
        images = to_input(pixels[start : start + 64], mean, std, device)
        with autocast(device):
            rows.append(image_features(visual, images).float().cpu())
    return torch.cat(rows)


def build_feature_bank(
    visual: nn.Module,
    source: BatchSource,
    plan: Sequence[tuple[int, int]],
    path: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    key: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FeatureBatch]:
    """The batches of ``plan``, (step, crop side) each, through the frozen ``visual``.

    Kept at ``path`` and reused when it was made with the same ``key`` (hash of tower and data); another key raises
    TrainingError rather than training on foreign features.
    """
    if not path.is_file():
        made: list[tuple[Tensor, Batch]] = []
        for step, crop in plan:
            batch = source.batch(step, crop)
            made.append((tower_features(visual, batch.pixels, mean, std), batch))
            progress(len(made), len(plan))
        partial = path.with_suffix(".partial")
        labels = json.dumps([batch.labels.to_dict() for _, batch in made])
        save_file({"features": torch.stack([f for f, _ in made])}, partial, metadata={"key": key, "labels": labels})
        partial.replace(path)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("key") != key:
            raise TrainingError(f"{path} holds features of another tower or other data. Remove it and run again.")
        features = stored.get_tensor("features")
    labels_of = [BatchLabels.from_dict(d) for d in json.loads(metadata["labels"])]
    return [FeatureBatch(f, b) for f, b in zip(features, labels_of, strict=True)]
