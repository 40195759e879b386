"""Faults of an unsteady hand and of a disturbed signal, as graded distortions for training.

Each takes pixels uint8 [H, W, 3] and a severity 0..1 and returns worse pixels of the same form; one state of ``rng``
gives one pattern, whatever the severity. They are what training holds of patterns laid over a photo, of copies of it,
of lost and of displaced parts. The kinds of these families that judge (``declip_training.evaluation.unseen``: fixed
rows and columns, two frames merged, blocks copied from elsewhere, the fields of video) are left out on purpose.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Pixels = npt.NDArray[np.uint8]


def interference(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Waves over the photo at any angle, as of a screen that was photographed: grey or coloured, stronger here than
    there.
    """
    height, width = pixels.shape[:2]
    angle, period = rng.uniform(0, np.pi), float(np.exp(rng.uniform(np.log(2.5), np.log(24.0))))
    coloured = rng.uniform(0, 2 * np.pi, 3) * (rng.random() < 0.4)
    along = (np.arange(width) * np.cos(angle))[None] + (np.arange(height) * np.sin(angle))[:, None]
    phase = (2 * np.pi / period * along[..., None] + coloured + rng.uniform(0, 2 * np.pi)).astype(np.float32)
    swell = np.float32(1.0) - np.float32(rng.uniform(0, 0.8)) * np.sin(phase * np.float32(rng.uniform(0.02, 0.1))) ** 2
    strength = np.float32(1.5 + 45.0 * severity**1.4)
    waved: Pixels = np.clip(pixels + strength * swell * np.sin(phase) + 0.5, 0, 255).astype(np.uint8)
    return waved


def camera_shake(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Blurred along the crooked path of a hand that dwells here and there; the size of the path grows."""
    velocity = np.cumsum(rng.standard_normal((24, 2)), axis=0) + rng.standard_normal((24, 2))
    path = np.cumsum(velocity, axis=0)
    path = (path - path.mean(axis=0)) / np.abs(path - path.mean(axis=0)).max()
    dwell = rng.exponential(size=24) ** 1.5
    between = np.linspace(0, 23, 231)  # else a long path is a row of points, which shows copies and no blur
    path = np.stack([np.interp(between, np.arange(24), line) for line in path.T], axis=1)
    dwell = np.interp(between, np.arange(24), dwell)
    reach = 0.7 + 13.0 * severity**1.4
    margin = int(np.ceil(reach)) + 1
    kernel = np.zeros((2 * margin + 1, 2 * margin + 1), np.float32)
    for (y, x), weight in zip(margin + reach * path, dwell / dwell.sum(), strict=True):
        top, left = int(y), int(x)
        down, right = y - top, x - left
        kernel[top : top + 2, left : left + 2] += weight * np.outer((1 - down, down), (1 - right, right))
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect").astype(np.float32)
    shape = tuple(fft.next_fast_len(n + 2 * margin, real=True) for n in padded.shape[:2])
    spectrum = fft.rfft2(padded, shape, axes=(0, 1)) * fft.rfft2(kernel, shape)[..., None]
    shaken = fft.irfft2(spectrum, shape, axes=(0, 1))[2 * margin :, 2 * margin :][: pixels.shape[0], : pixels.shape[1]]
    blurred: Pixels = np.clip(shaken + 0.5, 0, 255).astype(np.uint8)
    return blurred


def dropouts(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Rectangles anywhere are lost and filled with one colour each: their own mean, grey, black or any."""
    height, width = pixels.shape[:2]
    damaged: Pixels = pixels.copy()
    to_lose = (0.004 + 0.4 * severity**1.6) * height * width
    longest = float(np.exp(rng.uniform(np.log(6.0), np.log(64.0))))
    filling = int(rng.integers(4))
    lost = 0
    while lost < to_lose:
        high, wide = (int(n) for n in np.exp(rng.uniform(np.log(3.0), np.log(longest), 2)))
        top, left = int(rng.integers(height)), int(rng.integers(width))
        part = damaged[top : top + high, left : left + wide]
        fills = (part.mean(axis=(0, 1)), np.full(3, 128), np.zeros(3), rng.integers(0, 256, 3))
        part[...] = fills[filling]
        lost += part.shape[0] * part.shape[1]
    return damaged


def jitter(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Every pixel is one from nearby, as through frosted glass; neighbours are taken together or each for itself."""
    height, width = pixels.shape[:2]
    together = rng.uniform(0, 3.0)
    offsets = rng.standard_normal((2, height, width), dtype=np.float32)
    if together > 0.3:
        offsets = ndimage.gaussian_filter(offsets, (0, together, together), mode="wrap")
    offsets *= np.float32(0.35 + 5.0 * severity**1.3) / offsets.std()
    rows = np.clip(np.arange(height)[:, None] + np.rint(offsets[0]).astype(int), 0, height - 1)
    columns = np.clip(np.arange(width)[None] + np.rint(offsets[1]).astype(int), 0, width - 1)
    jittered: Pixels = pixels[rows, columns]
    return jittered
