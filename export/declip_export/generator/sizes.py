"""The sizes of pictures that a generator is made for: one, or a range of them."""

from __future__ import annotations

from dataclasses import dataclass

from declip_runtime.errors import UsageError
from declip_runtime.signature import Range

from .base import Base

PixelSize = int | Range
"""Pixels of a picture's side, fixed or free between two sizes."""


@dataclass(frozen=True)
class PictureSizes:
    """Default ``height`` and ``width`` in pixels, and of each the range in ``latents``, of equal ends where fixed."""

    height: int
    width: int
    latents: dict[str, Range]


def picture_sizes(
    base: Base, granularity: int, vae_scale: int, height: PixelSize | None, width: PixelSize | None
) -> PictureSizes:
    """Sizes as asked for, by default those that the UNet was trained on.

    ``granularity`` is what latents must be multiples of, ``vae_scale`` the pixels that a latent spans. Raises
    UsageError for sizes that are no multiples of both together.
    """
    trained = base.pipeline.unet.config.sample_size or 64
    sides = (trained, trained) if isinstance(trained, int) else tuple(trained)
    step = granularity * vae_scale
    asked = {"height": height, "width": width}
    ranges = {
        name: _range(name, sides[i] * vae_scale if asked[name] is None else asked[name], step)
        for i, name in enumerate(("height", "width"))
    }
    latents = {name: Range(*(pixels // vae_scale for pixels in size)) for name, size in ranges.items()}
    return PictureSizes(ranges["height"].optimum, ranges["width"].optimum, latents)


def _range(name: str, size: PixelSize | None, step: int) -> Range:
    found = size if isinstance(size, Range) else Range(*([size or 0] * 3))
    if not 0 < found.minimum <= found.optimum <= found.maximum:
        raise UsageError(f"{name} ranges over {list(found)}. Give smallest, usual and largest size in this order.")
    for pixels in found:
        if pixels % step:
            below = pixels // step * step
            near = f"{below} or {below + step}" if below else str(step)
            raise UsageError(f"{name} {pixels} is no multiple of {step}, as this model needs. Nearest: {near}.")
    return found
