"""Faults that a lens and a camera's own processing leave, as graded distortions for training.

Each takes pixels uint8 [H, W, 3] and a severity 0..1 and returns worse pixels of the same form; one state of ``rng``
gives one pattern, whatever the severity. Their judges (``declip_training.evaluation.camera_faults``) are made by other
code, which models the faults otherwise.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]


def colour_fringes(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Red and blue displaced against green: by a lens off its axis, so nearly alike all over a cut through a photo."""
    reach = 0.5 + 6.5 * severity**1.5
    angle, split = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7)
    growth = rng.uniform(-0.004, 0.004) * severity
    red, green, blue = np.moveaxis(pixels, 2, 0)
    way = np.array([np.cos(angle), np.sin(angle)])
    moved = _displaced(red, 2 * reach * split * way, growth), _displaced(blue, -2 * reach * (1 - split) * way, -growth)
    return np.stack([moved[0], green, moved[1]], axis=2)


def _displaced(plane: Pixels, offset: npt.NDArray[np.float64], growth: float) -> Pixels:
    height, width = plane.shape
    margin = int(np.ceil(np.abs(offset).max() + abs(growth) * max(height, width))) + 2
    scale = 1.0 + growth
    matrix = (scale, 0.0, margin + offset[0], 0.0, scale, margin + offset[1])
    padded = Image.fromarray(np.pad(plane, margin, mode="edge"))
    return np.asarray(padded.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def banding(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Too few tones: in all channels or in the luma alone, their thresholds anywhere."""
    step = 256.0 / (56.0 * 0.06**severity)
    phase = rng.uniform(0, step, 3).astype(np.float32)
    luma_only = rng.random() < 0.4
    values = np.asarray(Image.fromarray(pixels).convert("YCbCr")) if luma_only else pixels
    coarse = (np.floor((values + phase) / step) + 0.5) * step - phase
    rounded: Pixels = np.clip(coarse + 0.5, 0, 255).astype(np.uint8)
    if not luma_only:
        return rounded
    rounded[..., 1:] = values[..., 1:]
    return np.asarray(Image.fromarray(rounded, "YCbCr").convert("RGB"))


def halos(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Sharpened far too much, channel by channel, with a radius of a lens' blur or of a clumsy "clarity"."""
    radius = float(np.exp(rng.uniform(np.log(0.8), np.log(6.0))))
    mask = ImageFilter.UnsharpMask(radius=radius, percent=round(90 + 700 * severity**1.2), threshold=0)
    return np.asarray(Image.fromarray(pixels).filter(mask))


def smearing(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Noise, then a noise reduction that keeps edges and wipes texture out: a self-guided filter of the luma.

    Colour is smoothed without regard to edges, so it runs over them.
    """
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(4.0 + 22.0 * severity)
    noisy = Image.fromarray(np.clip(pixels + noise + 0.5, 0, 255).astype(np.uint8))
    luma, *colour = noisy.convert("YCbCr").split()
    size = 3 + 2 * round(rng.uniform(0.6, 1.0) * 4 * severity)
    smooth = _guided(np.asarray(luma, np.float32), size, (9.0 + 50.0 * severity) ** 2)
    smooth_luma = Image.fromarray(np.clip(smooth + 0.5, 0, 255).astype(np.uint8))
    blurred = [plane.filter(ImageFilter.BoxBlur(1.0 + 4.0 * severity)) for plane in colour]
    return np.asarray(Image.merge("YCbCr", (smooth_luma, *blurred)).convert("RGB"))


def _guided(plane: Plane, size: int, tolerance: float) -> Plane:
    """He, Sun, Tang (2010), "Guided image filtering", the plane being its own guide; ``tolerance`` is a variance."""
    mean = ndimage.uniform_filter(plane, size)
    variance = np.maximum(ndimage.uniform_filter(plane * plane, size) - mean * mean, 0)
    slope = variance / (variance + np.float32(tolerance))
    offset = mean - slope * mean
    filtered: Plane = ndimage.uniform_filter(slope, size) * plane + ndimage.uniform_filter(offset, size)
    return filtered


def camera_grain(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """What is left of noise in a camera's JPEG: fine in the luma, blotchy in the colours, stronger in the shadows."""
    height, width = pixels.shape[:2]
    strength = 0.8 + 13.0 * severity**1.4
    shade = 1.25 - 0.75 * pixels.mean(axis=2, keepdims=True, dtype=np.float32) / 255.0
    fine = _soft_noise((height, width, 1), rng.uniform(0.2, 1.1), rng)
    blotches = _soft_noise(pixels.shape, rng.uniform(0.8, 3.5), rng)
    blotches -= blotches.mean(axis=2, keepdims=True)
    noise = fine + rng.uniform(0.2, 1.4) * blotches
    grainy: Pixels = np.clip(pixels + np.float32(strength) * shade * noise + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        return grainy
    stored = io.BytesIO()
    Image.fromarray(grainy).save(stored, "JPEG", quality=int(rng.integers(90, 99)), subsampling=int(rng.integers(0, 3)))
    return np.asarray(Image.open(stored).convert("RGB"))


def _soft_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Plane:
    """Normal noise of standard deviation 1, its neighbours correlated over ``sigma`` pixels."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if sigma > 0.2:
        noise = ndimage.gaussian_filter(noise, (sigma, sigma, 0), mode="wrap")
        noise /= noise.std() + np.float32(1e-6)
    return noise
