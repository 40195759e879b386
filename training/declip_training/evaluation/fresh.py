"""Faults that nothing was ever chosen by: what a score makes of them says how far it knows faults at large.

As in ``unseen``: five rungs above the untouched photo, set by eye from just visible to severe, never by what an engine
makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from .ladders import Pixels, Rung, centred, rungs, to_linear, to_pixels, to_srgb


def corner_softness(pixels: Pixels, sigma: float) -> Pixels:
    """A lens whose focus is a bowl: blurred by ``sigma`` pixels in the corners, with the square of the distance from
    the middle."""
    light = to_linear(pixels)
    rows, columns = centred(pixels)
    depth = 4 * (rows**2 + columns**2) / 2  # of five degrees of blur, where each pixel lies
    degrees = [ndimage.gaussian_filter(light, (k / 4 * sigma, k / 4 * sigma, 0), mode="nearest") for k in range(5)]
    return to_srgb(sum(np.maximum(0, 1 - np.abs(depth - k))[..., None] * degree for k, degree in enumerate(degrees)))


def dust(pixels: Pixels, strength: float) -> Pixels:
    """``strength`` specks a hundred thousand pixels on the sensor: soft grey discs that swallow up to two thirds of
    the light."""
    rng = np.random.default_rng(8)
    height, width = pixels.shape[:2]
    passing = np.ones((height, width))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(max(1, round(strength * height * width / 1e5))):
        y, x, radius, lost = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 9), rng.uniform(0.3, 0.67)
        passing *= 1 - lost * special.expit(2 * (radius - np.hypot(rows - y, columns - x)))
    return to_srgb(to_linear(pixels) * passing[..., None])


def reflection(pixels: Pixels, strength: float) -> Pixels:
    """Through a window: what lies behind the camera, here the photo mirrored and out of focus, is ``strength`` of 1 of
    the light."""
    light = to_linear(pixels)
    behind = ndimage.gaussian_filter(light[:, ::-1], (2, 2, 0), mode="nearest")
    return to_srgb((1 - strength) * light + strength * behind)


def seams(pixels: Pixels, strength: float) -> Pixels:
    """Stitched of four frames that do not fit: each next one ``strength`` pixels higher or lower, with three times as
    many hundredths more light or less."""
    light = to_linear(pixels)
    stitched = []
    for k, frame in enumerate(np.array_split(light, 4, axis=1)):
        side = (-1) ** k
        moved = ndimage.shift(frame, (side * strength / 2, 0, 0), order=1, mode="nearest")
        stitched.append(moved * (1 + side * 1.5 * strength / 100))
    return to_srgb(np.concatenate(stitched, axis=1))


def flare(pixels: Pixels, strength: float) -> Pixels:
    """The sun in the lens: seven tinted discs on a line through the middle, up to ``strength`` of white each."""
    rng = np.random.default_rng(9)
    rows, columns = centred(pixels)
    glow = np.zeros(pixels.shape)
    for place in np.linspace(-0.9, 0.9, 7):
        distance = np.hypot(rows - 0.8 * place, columns - place)
        disc = special.expit(60 * (rng.uniform(0.06, 0.22) - distance))
        glow += disc[..., None] * rng.uniform(0.2, 1.0, 3)
    return to_srgb(to_linear(pixels) + strength * glow)


def overdone_clarity(pixels: Pixels, strength: float) -> Pixels:
    """Local contrast raised by ``strength`` times: what differs from its surroundings, thirty pixels wide."""
    values: npt.NDArray[np.float64] = pixels.astype(np.float64)
    grey = values.mean(axis=2)
    return to_pixels(values + strength * (grey - ndimage.gaussian_filter(grey, 15, mode="nearest"))[..., None])


FRESH: Mapping[str, Sequence[Rung]] = {
    "corner softness": rungs(corner_softness, 1.2, 2.2, 3.8, 6.0, 10.0),
    "dust": rungs(dust, 4, 12, 30, 70, 150),
    "reflection": rungs(reflection, 0.08, 0.16, 0.26, 0.38, 0.5),
    "seams": rungs(seams, 1, 2, 4, 7, 12),
    "flare": rungs(flare, 0.03, 0.08, 0.18, 0.36, 0.7),
    "overdone clarity": rungs(overdone_clarity, 0.5, 1.0, 1.8, 3.0, 5.0),
}
"""Six kinds, written on the evening of 27 November 2026, when the tower that is bundled since had been trained. Four
more had been here, until a last layer was taken that they had been looked at for: they are in ``unseen`` now."""
