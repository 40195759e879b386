"""Ladders of faults that training never makes: a score that falls on them knows faults, not only those it was shown.

Nothing is shared with ``declip_training.data.distortions``, and none of its ten kinds (blur, defocus, motion, sensor
and display noise, JPEG, under- and overexposure, contrast, resolution) is here. Five rungs above the untouched photo,
set by eye from just visible to severe, never by what an engine makes of them. Every function is deterministic; those
that use Pillow's codecs and filters give what this machine's version gives.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, features
from scipy import ndimage

from declip_runtime.errors import TrainingError

from .ladders import Pixels, Rung, sensor_noise

_LUMA = np.array([0.2126, 0.7152, 0.0722])


def chromatic_aberration(pixels: Pixels, strength: float) -> Pixels:
    """Red drawn larger and blue smaller than green, by ``strength`` pixels at the corners (a lens's lateral colour)."""
    height, width = pixels.shape[:2]
    stretch = 2 * strength / max(float(np.hypot(width, height)), 1.0)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    return np.stack([_magnified(red, 1 + stretch), green, _magnified(blue, 1 - stretch)], axis=2)


def _magnified(plane: Pixels, scale: float) -> Pixels:
    """``plane`` drawn ``scale`` times as large about its centre, the edge repeated where it ends."""
    height, width = plane.shape
    margin = int(np.ceil(abs(scale - 1) * max(height, width))) + 2
    source = Image.fromarray(np.pad(plane, margin, mode="edge"))
    shift = [margin + (1 - 1 / scale) * length / 2 for length in (width, height)]
    matrix = (1 / scale, 0.0, shift[0], 0.0, 1 / scale, shift[1])
    return np.asarray(
        source.transform((width, height), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC)
    )


def posterisation(pixels: Pixels, strength: float) -> Pixels:
    """``strength`` evenly spaced values in each channel, the nearest of them taken."""
    steps = strength - 1
    return _to_pixels(np.round(pixels * (steps / 255.0)) * (255.0 / steps))


def oversharpening(pixels: Pixels, strength: float) -> Pixels:
    """Halos: ``strength`` times the luma's difference from its blur of 2 pixels, added to all channels."""
    luma = pixels @ _LUMA
    detail = luma - ndimage.gaussian_filter(luma, 2.0, mode="nearest")
    return _to_pixels(pixels + strength * detail[..., None])


def dead_pixels(pixels: Pixels, strength: float) -> Pixels:
    """A share ``strength`` of all channel values stuck at 0 or 255; those stuck at a lower share stay stuck."""
    rng = np.random.default_rng(2)
    order, value = rng.random(pixels.shape), rng.integers(0, 2, pixels.shape) * 255
    return np.where(order < strength, value, pixels).astype(np.uint8)


def webp(pixels: Pixels, strength: float) -> Pixels:
    """Through a WebP file of quality ``strength``."""
    return _through_file(pixels, "WEBP", "webp", quality=round(strength), method=4)


def jpeg2000(pixels: Pixels, strength: float) -> Pixels:
    """Through a JPEG 2000 file of the lossy wavelet, ``strength`` dB PSNR: a rate would mean less on a small photo."""
    quality = {"quality_mode": "dB", "quality_layers": [strength]}
    return _through_file(pixels, "JPEG2000", "jpg_2000", irreversible=True, **quality)


def _through_file(pixels: Pixels, form: str, feature: str, **options: Any) -> Pixels:
    if not features.check(feature):
        raise TrainingError(f"this Pillow cannot write {form}. Install the wheel from PyPI: pip install -U pillow")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    with Image.open(buffer) as stored:
        return np.asarray(stored.convert("RGB"))


def watercolour(pixels: Pixels, strength: int) -> Pixels:
    """What a phone makes of a dark scene: noise, then ``strength`` passes of a median that smear what noise left.

    Colour is smoothed less thoroughly than luma, so blotches of it remain.
    """
    noisy = sensor_noise(pixels, 1600.0 / strength**1.3)
    luma, *chroma = Image.fromarray(noisy).convert("YCbCr").split()
    for _ in range(strength):
        luma = luma.filter(ImageFilter.MedianFilter(3))
    smooth = [plane.filter(ImageFilter.GaussianBlur(1.5)) for plane in chroma]
    return np.asarray(Image.merge("YCbCr", (luma, *smooth)).convert("RGB"))


def striping(pixels: Pixels, strength: float) -> Pixels:
    """Each row as a whole brighter or darker, by ``strength`` of 255 (standard deviation); each column by half that."""
    rng = np.random.default_rng(3)
    height, width = pixels.shape[:2]
    rows, columns = rng.standard_normal((height, 1, 1)), rng.standard_normal((1, width, 1))
    return _to_pixels(pixels + strength * (rows + 0.5 * columns))


def _to_pixels(values: npt.NDArray[np.float64]) -> Pixels:
    pixels: Pixels = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels


def _rungs(function: Callable[..., Pixels], *strengths: float) -> Sequence[Rung]:
    return [partial(function, strength=strength) for strength in strengths]


UNSEEN: Mapping[str, Sequence[Rung]] = {
    "chromatic aberration": _rungs(chromatic_aberration, 0.8, 1.6, 3.0, 5.5, 10.0),
    "posterisation": _rungs(posterisation, 24, 14, 9, 6, 4),
    "oversharpening": _rungs(oversharpening, 1.2, 2.0, 3.2, 5.0, 8.0),
    "dead pixels": _rungs(dead_pixels, 0.0005, 0.002, 0.006, 0.018, 0.05),
    "WebP": _rungs(webp, 50, 30, 15, 6, 0),
    "JPEG 2000": _rungs(jpeg2000, 36, 33, 30, 27, 24),
    "watercolour": _rungs(watercolour, 1, 2, 4, 7, 12),
    "striping": _rungs(striping, 2.0, 4.0, 8.0, 15.0, 28.0),
}
"""Five rungs of each kind, from just visible to severe."""
