"""Any Pillow mode and any embedded ICC profile to 8-bit sRGB.

Two decisions that open_clip does not take, both about how a picture looks rather than how it is stored:

* Transparent pixels lie on white, as a page or a viewer shows them; dropping alpha would show colours nobody sees.
* An embedded profile is honoured: Display P3 (every iPhone), Adobe RGB and CMYK files look washed out without it.
  A profile that is sRGB in effect changes nothing, so ordinary pictures stay bit-equal to open_clip's reading.
"""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

# Modes that hold 8 bits a channel and that Image.reduce averages correctly (alpha premultiplied).
_PLAIN_MODES = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "LAB"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
# sRGB profiles of different makers differ by up to this much of 255; nobody sees it.
_SRGB_TOLERANCE = 2
# LittleCMS's cmsFLAGS_BLACKPOINTCOMPENSATION, which Pillow before 10.3 has no name for.
_BLACK_POINT_COMPENSATION = 0x2000


def eight_bit(image: Image.Image) -> Image.Image:
    """Return a loaded picture as L, LA, RGB, RGBA, CMYK or LAB.

    16-bit grey keeps its upper byte, which is what Pillow does with 16-bit colour. Raises ValueError for pixels
    without a defined white: floats, and integers outside 0..65535.
    """
    transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
    if image.mode in _PLAIN_MODES and transparent == (image.mode in _ALPHA_MODES):
        return image
    if image.mode.startswith("I"):
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no defined white")
    if transparent:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return what ``eight_bit`` gave as mode RGB in sRGB; ``profile`` is the embedded ICC profile, if any.

    A damaged profile, or one of another colour model than the pixels, counts as none, as in every browser.
    """
    if image.mode in _ALPHA_MODES:
        image = _on_white(image)
    transform = _transform(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def changes_colours(profile: bytes, mode: str) -> bool:
    """Whether ``to_srgb`` would change pixels of this mode for the profile's sake."""
    return _transform(profile, mode) is not None


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("integer pixels outside 0..65535 have no defined white")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    opaque = "L" if image.mode == "LA" else "RGB"
    page = Image.new(opaque, image.size, "white")
    page.paste(image.convert(opaque), mask=image.getchannel("A"))
    return page


# Making a transform costs more than applying it to a small picture, and one camera writes one profile.
@lru_cache(maxsize=16)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB, or None where there is nothing (usable) to convert."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            _BLACK_POINT_COMPENSATION,  # type: ignore[arg-type]
        )
    except (ImageCms.PyCMSError, OSError):
        return _transform(None, mode) if profile and mode == "LAB" else None
    return None if mode in ("L", "RGB") and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Try the transform on a lattice over the whole cube: names of profiles prove nothing."""
    steps = range(0, 256, 17)
    colours = bytes(v for colour in product(steps, repeat=len(mode)) for v in colour)
    probe = Image.frombytes(mode, (len(colours) // len(mode), 1), colours)
    before = np.asarray(probe.convert("RGB"), np.int16)
    after = np.asarray(transform.apply(probe), np.int16)
    return int(np.abs(after - before).max()) <= _SRGB_TOLERANCE
