"""Pixels for calibration and parity: real photos from a folder, or synthetic ones where none is at hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from declip_runtime.errors import ImageError, UsageError
from declip_runtime.images import open_image
from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import prepare

from .onnx_graph import Array

_SHOWN = 3  # unreadable photos that are named
_HELD_OUT = 5  # of so many photos one judges the INT8 graph instead of calibrating it


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


def load_photos(folder: Path, preprocess: Preprocess, limit: int = 256, *, minimum: int = 1) -> Array:
    """Prepared pixels uint8 [N, S, S, 3] of at most ``limit`` photos below ``folder``, spread over it by name.

    A photo that cannot be read is skipped, with a warning that says how many were and names the first. Raises
    UsageError where fewer than ``minimum`` remain.
    """
    endings = tuple(Image.registered_extensions())
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in endings and f.is_file())
    if not files:
        raise UsageError(f"there is no photo below {folder}. Name a folder with photos like those to be scored.")
    pixels, skipped = [], []
    for file in files[:: max(1, len(files) // limit)][:limit]:
        try:
            pixels.append(prepare(open_image(file), preprocess))
        except ImageError as error:
            skipped.append(str(error))
    told = f"{len(skipped)} of {len(skipped) + len(pixels)} photos below {folder} cannot be read and were skipped: "
    told += " ".join(skipped[:_SHOWN]) + (" ..." if len(skipped) > _SHOWN else "")
    if len(pixels) < minimum:
        found = f"{len(pixels)} photos below {folder} can be used, {minimum} are needed. Add photos."
        raise UsageError(f"{found} {told}" if skipped else found)
    if skipped:
        warnings.warn(told, stacklevel=2)
    return np.concatenate(pixels)


def hold_out(photos: Array, limit: int = 16) -> tuple[Array, Array]:
    """Split photos [N, S, S, 3], N at least 2, into those that calibrate a graph and those that then judge it.

    Every fifth judges, at most ``limit`` of them and at least one: what calibrated a graph cannot tell how it does on
    other photos.
    """
    count = min(limit, max(1, len(photos) // _HELD_OUT))
    judges = np.zeros(len(photos), bool)
    judges[np.linspace(0, len(photos) - 1, count + 2).round().astype(int)[1:-1]] = True
    return photos[~judges], photos[judges]
