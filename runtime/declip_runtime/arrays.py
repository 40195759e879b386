"""Arrays as pictures: uint8 [H, W, 3], and for every other array a sentence on how to make it one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InvalidArrayError


def from_array(array: NDArray[np.uint8], channels: str) -> Image.Image:
    """Return a copy of a uint8 array [H, W, 3] as an RGB image; ``channels`` is its order, "rgb" or "bgr"."""
    height, width, _ = array.shape
    return Image.frombuffer("RGB", (width, height), np.ascontiguousarray(array), "raw", channels.upper(), 0, 1)


def require_picture(array: NDArray[Any]) -> None:
    """Raise InvalidArrayError, with the fix for the likely mistake, unless the array is uint8 [H, W, 3]."""
    problem = _problem(array)
    if problem:
        raise InvalidArrayError(
            f"an array {array.dtype} {list(array.shape)} was given, wanted is uint8 [H, W, 3]. {problem}"
        )


def _problem(array: NDArray[Any]) -> str:
    """Return how to make the array a valid one, or nothing if it is."""
    shape = array.shape
    if array.dtype.kind == "f" and np.isnan(array).any():
        return "It holds NaN: find out where that comes from before converting."
    if array.dtype.kind == "f":
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        unit = low >= 0 and high <= 1
        convert = "(array * 255).round().astype('uint8')" if unit else "numpy.clip(array, 0, 255).astype('uint8')"
        return f"Its values lie in {low:g}..{high:g}: convert them to 0..255, as with {convert}."
    if array.dtype == np.bool_:
        return "Its values are 0 and 1: convert them to 0 and 255, as with array * numpy.uint8(255)."
    if array.dtype != np.uint8:
        wide = array.dtype == np.uint16
        convert = "(array // 257).astype('uint8')" if wide else "numpy.clip(array, 0, 255).astype('uint8')"
        return f"Bring its values to 0..255 first, as with {convert}."
    if array.ndim == 2:
        return "A grey picture becomes one with numpy.stack([array] * 3, axis=-1)."
    if array.ndim == 4:
        return "Give the pictures of a batch one by one."
    if array.ndim != 3:
        return f"It has {array.ndim} dimensions instead of 3."
    if shape[2] != 3 and shape[0] == 3:
        return "Channels come last: use array.transpose(1, 2, 0)."
    if shape[2] == 4:
        return "Remove the alpha channel with array[..., :3]."
    if shape[2] != 3:
        return f"It has {shape[2]} channels instead of 3."
    return "" if array.size else "It has no pixels."
