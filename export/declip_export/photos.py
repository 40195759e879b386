"""Pixels for calibration and parity: real photos from a folder, or synthetic ones where none is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from declip_runtime.errors import UsageError
from declip_runtime.images import open_image
from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import prepare

from .onnx_graph import Array


def sample_images(size: int, count: int = 12, seed: int = 0) -> Array:
    """Synthetic uint8 [count, size, size, 3] for where no photo is at hand: soft shapes, noise, black and white."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    images = [np.zeros((size, size, 3)), np.full((size, size, 3), 255.0)]
    while len(images) < count:
        waves = [np.sin(2 * np.pi * (rng.normal(0, 3) * x + rng.normal(0, 3) * y + rng.random())) for _ in range(3)]
        soft = rng.uniform(40, 215) + rng.uniform(20, 90) * np.stack(waves, axis=2)
        images.append(soft + rng.normal(0, rng.choice([0, 4, 40]), soft.shape))
    pixels: Array = np.clip(np.stack(images[:count]), 0, 255).astype(np.uint8)
    return pixels


def load_photos(folder: Path, preprocess: Preprocess, limit: int = 256) -> Array:
    """Prepared pixels uint8 [N, S, S, 3] of at most ``limit`` photos below ``folder``, spread over it by name.

    Raises UsageError where there is no photo, ImageError for one that cannot be read.
    """
    endings = tuple(Image.registered_extensions())
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in endings and f.is_file())
    if not files:
        raise UsageError(f"there is no photo below {folder}. Name a folder with photos like those to be scored.")
    step = max(1, len(files) // limit)
    return np.concatenate([prepare(open_image(f), preprocess) for f in files[::step][:limit]])
