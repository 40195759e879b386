"""Ladders that change one attribute of a photo and leave the others as alone as light allows.

Tone and colour are changed in Oklab (B. Ottosson, 2020), where lightness and colour stand apart. A tone curve scales
colour along with lightness, as light does, so hue and saturation stay. Nothing is shared with the changes that training
makes (``declip_training.data``). Strengths were set by eye, never by what an engine makes of them: the first rung just
visible, the last more than a photographer would do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy import ndimage

from .ladders import Light, Pixels, Rung, blur, jpeg, to_linear, to_srgb

_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def to_oklab(pixels: Pixels) -> Light:
    """Oklab [H, W, 3] of sRGB pixels: lightness 0..1, then the two colour axes."""
    lab: Light = np.cbrt(to_linear(pixels) @ _LMS.T) @ _LAB.T
    return lab


def from_oklab(lab: Light) -> Pixels:
    """SRGB pixels of Oklab; what no screen can show is clipped."""
    return to_srgb((lab @ np.linalg.inv(_LAB).T) ** 3 @ np.linalg.inv(_LMS).T)


def sharpen(pixels: Pixels, strength: float) -> Pixels:
    """Unsharp mask of 1 pixel on lightness: ``strength`` times what its blur takes away is added."""
    lab = to_oklab(pixels)
    lightness = lab[..., 0]
    lab[..., 0] = lightness + strength * (lightness - ndimage.gaussian_filter(lightness, 1.0, mode="nearest"))
    return from_oklab(lab)


def grain(pixels: Pixels, electrons: float) -> Pixels:
    """Photons counted at every pixel in every colour, white being ``electrons`` of them, 3 electrons of read noise.

    Without the mosaic of ``ladders.sensor_noise``, whose interpolation would blur as well.
    """
    light = to_linear(pixels)
    rng = np.random.default_rng(4)
    return to_srgb((rng.poisson(light * electrons) + rng.normal(0, 3.0, light.shape)) / electrons)


def tone(pixels: Pixels, exponent: float) -> Pixels:
    """Lightness to the power ``exponent``: above 1 darker, below brighter; black and white stay."""
    lab = to_oklab(pixels)
    return _with_lightness(lab, np.clip(lab[..., 0], 0, 1) ** exponent)


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """Lightness ``factor`` times as far from its mean over the photo."""
    lab = to_oklab(pixels)
    mean = lab[..., 0].mean()
    return _with_lightness(lab, np.clip(mean + factor * (lab[..., 0] - mean), 0, 1))


def colour(pixels: Pixels, factor: float) -> Pixels:
    """Both colour axes times ``factor``; 0 is black and white."""
    return from_oklab(to_oklab(pixels) * np.array([1.0, factor, factor]))


def _with_lightness(lab: Light, lightness: Light) -> Pixels:
    scale = np.divide(lightness, lab[..., 0], out=np.zeros_like(lightness), where=lab[..., 0] > 1e-6)
    changed = lab * scale[..., None]
    changed[..., 0] = lightness
    return from_oklab(changed)


@dataclass(frozen=True)
class AttributeLadder:
    """Rungs, weakest first, and whose they are; ``more`` says whether there is more of the attribute's name on top.

    ``worse`` says whether a score of kind ``quality`` has to fall (True) or to rise (False).
    """

    attribute: str
    more: bool
    worse: bool
    rungs: Sequence[Rung]

    def direction(self, kind: Literal["quality", "degree"]) -> int:
        """Sign in which a score of this attribute must move along the rungs."""
        return (1 if self.more else -1) if kind == "degree" else (-1 if self.worse else 1)


def _ladder(
    attribute: str,
    function: Callable[..., Pixels],
    parameter: str,
    strengths: Sequence[float],
    *,
    more: bool,
    worse: bool,
) -> AttributeLadder:
    return AttributeLadder(attribute, more, worse, [partial(function, **{parameter: s}) for s in strengths])


ATTRIBUTE_LADDERS: Mapping[str, AttributeLadder] = {
    "blurred": _ladder("sharpness", blur, "sigma", (0.7, 1.1, 1.8, 2.8, 4.5), more=False, worse=True),
    "sharpened": _ladder("sharpness", sharpen, "strength", (0.3, 0.6, 0.9, 1.3, 1.8), more=True, worse=False),
    "noisy": _ladder("noise", grain, "electrons", (3000.0, 1200.0, 500.0, 200.0, 80.0), more=True, worse=True),
    "darker": _ladder("brightness", tone, "exponent", (1.15, 1.35, 1.6, 1.9, 2.3), more=False, worse=True),
    "brighter": _ladder("brightness", tone, "exponent", (0.85, 0.7, 0.57, 0.46, 0.36), more=True, worse=True),
    "flatter": _ladder("contrast", contrast, "factor", (0.85, 0.7, 0.55, 0.4, 0.25), more=False, worse=True),
    "harder": _ladder("contrast", contrast, "factor", (1.15, 1.35, 1.6, 1.9, 2.3), more=True, worse=True),
    "paler": _ladder("colorfulness", colour, "factor", (0.8, 0.6, 0.4, 0.2, 0.0), more=False, worse=True),
    "more vivid": _ladder("colorfulness", colour, "factor", (1.2, 1.45, 1.75, 2.1, 2.5), more=True, worse=True),
    "compressed": _ladder("compression", jpeg, "coarseness", (0.8, 1.4, 2.2, 3.3, 5.0), more=True, worse=True),
}
"""Five rungs each. A brightness, contrast or colorfulness that is a ``quality`` falls in either direction: whatever
leaves the photo as it was taken makes it worse."""

ATTRIBUTES = tuple(dict.fromkeys(ladder.attribute for ladder in ATTRIBUTE_LADDERS.values()))
