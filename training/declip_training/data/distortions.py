"""Graded distortions for training: a photo, a kind and a severity in 0..1 give a worse photo.

The ladders that judge a model are made by other code (``declip_training.evaluation.ladders``), from other photos and
with other physics, so that a model cannot pass by recognising these functions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from .accidents import accident
from .camera_faults import banding, camera_grain, colour_fringes, halos, smearing
from .signal_faults import camera_shake, dropouts, interference, jitter

Pixels = npt.NDArray[np.uint8]
Distortion = Callable[[Pixels, float, np.random.Generator], Pixels]


def _to_linear(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Display values to linear light with a plain 2.2 power; the exact sRGB curve is the evaluation's."""
    table = ((np.arange(256, dtype=np.float32) / 255.0) ** 2.2).astype(np.float32)
    return table[pixels]


def _to_display(light: npt.NDArray[np.float32]) -> Pixels:
    encoded = np.clip(light, 0.0, 1.0) ** np.float32(1 / 2.2)
    pixels: Pixels = (encoded * 255.0 + 0.5).astype(np.uint8)
    return pixels


def _gaussian_blur(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    radius = 0.35 + 7.5 * severity**1.8
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _defocus(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Two box blurs, close to the flat disc of a lens out of focus."""
    radius = 0.35 + 6.5 * severity**1.8
    image = Image.fromarray(pixels)
    return np.asarray(image.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(0.5 * radius)))


def _motion_blur(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Mean of the picture shifted along a line, edges repeated."""
    length = 1.5 + 20.0 * severity**1.3
    angle = rng.uniform(0.0, np.pi)
    steps = max(2, int(np.ceil(length)) + 1)
    offsets = np.linspace(-length / 2, length / 2, steps)
    height, width = pixels.shape[:2]
    pad = int(np.ceil(length / 2)) + 1
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge").astype(np.float32)
    total = np.zeros(pixels.shape, np.float32)
    for offset in offsets:
        y, x = pad + offset * np.sin(angle), pad + offset * np.cos(angle)
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        fy, fx = np.float32(y - y0), np.float32(x - x0)
        for dy, wy in ((0, 1 - fy), (1, fy)):
            for dx, wx in ((0, 1 - fx), (1, fx)):
                total += (wy * wx) * padded[y0 + dy : y0 + dy + height, x0 + dx : x0 + dx + width]
    return (total / steps + 0.5).astype(np.uint8)


def _sensor_noise(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Shot and read noise in linear light, partly coloured and partly smeared, as cameras leave it."""
    light = _to_linear(pixels)
    shot = 0.0002 + 0.07 * severity**2
    read = 0.0008 + 0.05 * severity**1.5
    sigma = np.sqrt(shot * light + read * read)
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    if rng.random() < 0.5:  # demosaicing and mild denoising correlate neighbours
        noise = 0.5 * (noise + np.roll(noise, 1, axis=0))
        noise = 0.5 * (noise + np.roll(noise, 1, axis=1)) * 1.6
    grey = rng.uniform(0.0, 0.8)
    noise = (1 - grey) * noise + grey * noise.mean(axis=2, keepdims=True) * 1.7
    return _to_display(light + sigma * noise)


def _display_noise(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    sigma = 1.5 + 60.0 * severity**1.3
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(sigma)
    noisy: Pixels = np.clip(pixels + noise + 0.5, 0, 255).astype(np.uint8)
    return noisy


def _jpeg(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Severity is the logarithm of the quantisation's coarseness, 0.7 to 17 times the standard's example tables."""
    coarseness = 0.7 * 24.0**severity
    quality = 50.0 / coarseness if coarseness > 1 else 100.0 - 50.0 * coarseness  # libjpeg's own scale
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=max(2, round(quality)), subsampling=int(rng.integers(0, 3)))
    return np.asarray(Image.open(buffer).convert("RGB"))


def _underexposure(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return _to_display(_to_linear(pixels) * np.float32(2.0 ** -(0.4 + 4.0 * severity)))


def _overexposure(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return _to_display(_to_linear(pixels) * np.float32(2.0 ** (0.4 + 3.2 * severity)))


def _low_contrast(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    keep = np.float32(1.0 - 0.12 - 0.75 * severity)
    pivot = np.float32(rng.uniform(90, 190))
    flat: Pixels = np.clip(pivot + (pixels - pivot) * keep + 0.5, 0, 255).astype(np.uint8)
    return flat


def _low_resolution(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    image = Image.fromarray(pixels)
    factor = 1.25 + 4.0 * severity
    small = (max(8, int(image.width / factor)), max(8, int(image.height / factor)))
    up = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[int(rng.integers(0, 2))]
    return np.asarray(image.resize(small, Image.Resampling.BOX).resize(image.size, up))


DISTORTIONS: Mapping[str, Distortion] = {
    "gaussian blur": _gaussian_blur,
    "defocus": _defocus,
    "motion blur": _motion_blur,
    "sensor noise": _sensor_noise,
    "display noise": _display_noise,
    "jpeg": _jpeg,
    "underexposure": _underexposure,
    "overexposure": _overexposure,
    "low contrast": _low_contrast,
    "low resolution": _low_resolution,
    "camera grain": camera_grain,
    "colour fringes": colour_fringes,
    "banding": banding,
    "halos": halos,
    "smearing": smearing,
    "camera shake": camera_shake,
    "interference": interference,
    "dropouts": dropouts,
    "jitter": jitter,
    "accident": accident,
}


NOISES = frozenset({"sensor noise", "display noise", "camera grain"})


def softened(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A copy of uint8 [H, W, 3] that has lost its finest detail to a blur of one pixel or two."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.8))))


def distort(pixels: Pixels, kind: str, severity: float, rng: np.random.Generator) -> Pixels:
    """Return a worse copy of ``pixels`` (uint8 [H, W, 3]); ``kind`` is a key of DISTORTIONS, severity in 0..1."""
    return DISTORTIONS[kind](pixels, severity, rng)


def ladder(
    window: Pixels, side: int, change: Distortion, severities: Iterable[float], seed: int, *, stored: bool
) -> list[Pixels]:
    """Clean picture first, then one for each severity, as the tower sees them: uint8 [side, side, 3].

    ``window`` uint8 [W, W, 3] is a cut through the photo as its file holds it; the same random pattern
    goes through all rungs. ``stored`` says what the severities mean: pixels of the file, scaled for the tower
    afterwards, or pixels of what the tower sees.
    """
    clean = window if stored else scaled(window, side)
    rungs = [clean, *(change(clean, float(s), np.random.default_rng(seed)) for s in severities)]
    return [scaled(r, side) for r in rungs] if stored else rungs


def scaled(pixels: Pixels, side: int) -> Pixels:
    """Bicubic copy of uint8 [S, S, 3] with sides of ``side``; the same array where it has them."""
    if pixels.shape[0] == side:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
