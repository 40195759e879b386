"""Faults that nothing was ever chosen by: what a score makes of them says how far it knows faults at large.

As in ``unseen``: five rungs above the untouched photo, set by eye from just visible to severe, never by what an engine
makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .ladders import Pixels, Rung, rungs, to_linear, to_pixels, to_srgb


def vignetting(pixels: Pixels, strength: float) -> Pixels:
    """Light lost towards the corners, by ``strength`` of 1 there, with the square of the distance from the middle."""
    rows, columns = _grid(pixels)
    return to_srgb(to_linear(pixels) * (1 - strength * (rows**2 + columns**2) / 2)[..., None])


def light_leak(pixels: Pixels, strength: float) -> Pixels:
    """Stray light from the right: orange, added to linear light, ``strength`` of white at the edge."""
    _, columns = _grid(pixels)
    glow = strength * np.exp(3 * (columns - 1))
    return to_srgb(to_linear(pixels) + glow[..., None] * np.array([1.0, 0.45, 0.15]))


def rolling_shutter(pixels: Pixels, strength: float) -> Pixels:
    """Rows read while the camera trembles: displaced by up to ``strength`` pixels along six waves a photo."""
    height, width = pixels.shape[:2]
    waves = np.sin(12 * np.pi * np.arange(height) / height)
    where = np.clip(np.arange(width) + strength * waves[:, None], 0, width - 1)
    left = np.floor(where).astype(int)
    share = (where - left)[..., None]
    rows = np.arange(height)[:, None]
    return to_pixels((1 - share) * pixels[rows, left] + share * pixels[rows, np.minimum(left + 1, width - 1)])


def solarisation(pixels: Pixels, strength: float) -> Pixels:
    """Values above the middle turned over, as film does that saw light while developing; weighted ``strength`` of 1."""
    turned = np.where(pixels > 127, 255 - pixels, pixels)
    return to_pixels((1 - strength) * pixels + strength * turned)


def _grid(pixels: Pixels) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], ...]:
    """Row and column of every pixel in -1..1."""
    height, width = pixels.shape[:2]
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return rows, columns


FRESH: Mapping[str, Sequence[Rung]] = {
    "vignetting": rungs(vignetting, 0.25, 0.45, 0.65, 0.82, 0.97),
    "light leak": rungs(light_leak, 0.08, 0.2, 0.45, 0.9, 1.8),
    "rolling shutter": rungs(rolling_shutter, 1.0, 2.5, 5.0, 9.0, 16.0),
    "solarisation": rungs(solarisation, 0.1, 0.25, 0.45, 0.7, 1.0),
}
"""Four kinds, written on 27 November when the tower that is bundled since had been trained, and looked at only when its
engine was done."""
