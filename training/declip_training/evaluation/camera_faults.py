"""Ladders of faults that a lens and a camera's own processing leave, for judging what training made in other ways.

Nothing is shared with ``declip_training.data.camera_faults``: colours part from the centre of the picture outwards,
tones are evenly spaced, halos are of the luma, and noise of a Bayer sensor is smeared by medians. Five rungs above the
untouched photo, set by eye from just visible to severe, before any engine was trained on such faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from .ladders import Pixels, Rung, rungs, sensor_noise, to_pixels

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
    return to_pixels(np.round(pixels * (steps / 255.0)) * (255.0 / steps))


def oversharpening(pixels: Pixels, strength: float) -> Pixels:
    """Halos: ``strength`` times the luma's difference from its blur of 2 pixels, added to all channels."""
    luma = pixels @ _LUMA
    detail = luma - ndimage.gaussian_filter(luma, 2.0, mode="nearest")
    return to_pixels(pixels + strength * detail[..., None])


def watercolour(pixels: Pixels, strength: float) -> Pixels:
    """What a phone makes of a dark scene: noise, then ``strength`` passes of a median that smear what noise left.

    Colour is smoothed less thoroughly than luma, so blotches of it remain.
    """
    noisy = sensor_noise(pixels, 1600.0 / strength**1.3)
    luma, *chroma = Image.fromarray(noisy).convert("YCbCr").split()
    for _ in range(round(strength)):
        luma = luma.filter(ImageFilter.MedianFilter(3))
    smooth = [plane.filter(ImageFilter.GaussianBlur(1.5)) for plane in chroma]
    return np.asarray(Image.merge("YCbCr", (luma, *smooth)).convert("RGB"))


CAMERA_FAULTS: Mapping[str, Sequence[Rung]] = {
    "chromatic aberration": rungs(chromatic_aberration, 0.8, 1.6, 3.0, 5.5, 10.0),
    "posterisation": rungs(posterisation, 24, 14, 9, 6, 4),
    "oversharpening": rungs(oversharpening, 1.2, 2.0, 3.2, 5.0, 8.0),
    "watercolour": rungs(watercolour, 1, 2, 4, 7, 12),
}
"""Five rungs of each kind, from just visible to severe."""
