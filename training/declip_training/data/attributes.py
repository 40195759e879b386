"""Attributes of a photo and what moves them: ladders that teach `sharpness`, `noise`, `brightness` and the like.

A step of a ladder moves one attribute and should leave the others where they are. The ladders that judge (see
``declip_training.evaluation.selectivity``) are made by other code, from other photos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from declip_runtime.scorer_manifest import ScoreKind

from .distortions import DISTORTIONS, Distortion, Pixels


def _sharpened(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    mask = ImageFilter.UnsharpMask(radius=rng.uniform(0.7, 1.5), percent=round(20 + 130 * severity), threshold=0)
    return np.asarray(Image.fromarray(pixels).filter(mask))


def _high_contrast(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Stretched around a middle grey, the rest clipped."""
    pivot = np.float32(rng.uniform(90, 160))
    stretched: Pixels = np.clip(pivot + (pixels - pivot) * np.float32(1.1 + severity) + 0.5, 0, 255).astype(np.uint8)
    return stretched


def _with_luma(pixels: Pixels, contrast: float) -> Pixels:
    """Lightness stretched around its mean, or shrunk, and the colours left as they are."""
    luma, *colour = Image.fromarray(pixels).convert("YCbCr").split()
    values = np.asarray(luma, np.float32)
    changed = np.clip(values.mean() + (values - values.mean()) * np.float32(contrast) + 0.5, 0, 255).astype(np.uint8)
    return np.asarray(Image.merge("YCbCr", (Image.fromarray(changed), *colour)).convert("RGB"))


def _flatter_lightness(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return _with_luma(pixels, 0.88 - 0.7 * severity)


def _harder_lightness(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return _with_luma(pixels, 1.1 + severity)


def _vivid(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Color(Image.fromarray(pixels)).enhance(1.15 + 1.6 * severity))


def _pale(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Color(Image.fromarray(pixels)).enhance(0.88 * (1 - severity)))


def _brighter(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """A gentler rise than overexposure: a gamma curve, which clips nothing."""
    table = 255 * (np.arange(256) / 255) ** (1 / (1.1 + 1.2 * severity))
    return (table + 0.5).astype(np.uint8)[pixels]


def _darker(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    table = 255 * (np.arange(256) / 255) ** (1.1 + 1.4 * severity)
    return (table + 0.5).astype(np.uint8)[pixels]


# Of these it is not clear which attributes they move, and which way: is a halo sharp, a smeared photo free of noise?
_UNCLEAR = ("colour fringes", "banding", "halos", "smearing", "interference", "dropouts", "jitter", "accident")

ALTERATIONS: Mapping[str, Distortion] = {
    "sharpened": _sharpened,
    "high contrast": _high_contrast,
    "flatter lightness": _flatter_lightness,
    "harder lightness": _harder_lightness,
    "vivid": _vivid,
    "pale": _pale,
    "brighter": _brighter,
    "darker": _darker,
}
"""Changes that move an attribute and of which nobody can say whether a photo is the worse for them."""

CHANGES: Mapping[str, Distortion] = {
    **{kind: change for kind, change in DISTORTIONS.items() if kind not in _UNCLEAR},
    **ALTERATIONS,
}
"""Every change that a ladder of attributes can be made of, most distortions included."""


@dataclass(frozen=True)
class Attribute:
    """A score, the words it starts from, and the changes that move it up (1) or down (-1).

    Those that are ``free`` may move it: of them it is not clear whether they should.
    """

    name: str
    kind: ScoreKind
    pair: tuple[str, str]
    description: str
    moved_by: Mapping[str, int]
    free: frozenset[str] = frozenset()

    def left_by(self, kind: str) -> bool:
        """Whether this change must leave the score where it is."""
        return kind not in self.moved_by and kind not in self.free


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "sharpness", "quality", ("A sharp photo.", "A blurry photo."), "Sharpness: free of blur",
        {
            "gaussian blur": -1, "defocus": -1, "motion blur": -1, "camera shake": -1, "low resolution": -1,
            "sharpened": 1,
        },
    ),
    Attribute(
        "noise", "quality", ("A clean photo.", "A noisy photo."), "Freedom from noise: higher is cleaner",
        {"sensor noise": -1, "display noise": -1, "camera grain": -1},
    ),
    Attribute(
        "compression", "quality", ("A photo without distortions.", "A compressed photo."),
        "Freedom from JPEG compression: higher is cleaner",
        {"jpeg": -1},
    ),
    Attribute(
        "brightness", "degree", ("A bright photo.", "A dark photo."), "How bright the photo is",
        {"underexposure": -1, "darker": -1, "overexposure": 1, "brighter": 1},
    ),
    Attribute(
        "contrast", "degree", ("A photo of high contrast.", "A flat photo."),
        "How strong the contrast is",
        {"low contrast": -1, "flatter lightness": -1, "high contrast": 1, "harder lightness": 1},
    ),
    Attribute(
        "colorfulness", "degree", ("A colorful photo.", "A pale photo."), "How colourful the photo is",
        {"pale": -1, "vivid": 1},
        frozenset({"low contrast", "high contrast"}),  # which fade colours, or strengthen them, along with the light
    ),
)  # fmt: skip

MEASURED = ("brightness", "contrast", "colorfulness")


def measure(pixels: Pixels) -> dict[str, float]:
    """What arithmetic can say of a photo uint8 [H, W, 3]: brightness (mean), contrast (standard deviation), and
    colorfulness (Hasler and Suesstrunk 2003), in units of 255."""
    red, green, blue = (pixels[..., c].astype(np.float64) / 255 for c in range(3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    first, second = red - green, 0.5 * (red + green) - blue
    colour = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    return {"brightness": float(grey.mean()), "contrast": float(grey.std()), "colorfulness": float(colour)}
