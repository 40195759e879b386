"""From an RGB picture to the tower's input, pixel for pixel as open_clip's evaluation transform does it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import UsageError
from .images import shrunk_from
from .manifest import Preprocess

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# A strip that would be resized to more than this (at 224: longer than 334 times its width) gives its centre only.
_WHOLE_PIXELS = 1 << 24

Box = tuple[int, int, int, int]


def prepare(image: Image.Image, spec: Preprocess, views: int = 1) -> NDArray[np.uint8]:
    """Return ``image`` (mode RGB, upright) as uint8 [views, size, size, 3].

    View 0 is the resized centre square, equal to open_clip's. The others are crops of ``size`` x ``size``
    at native resolution, spread over the picture; they show the sharpness and noise that resizing hides. Only where
    the picture's shorter side is below ``size`` is a crop that small and enlarged. Raises UsageError for ``views``
    below 1, for another mode, and for native crops of a picture that was shrunk while it was opened.
    """
    if image.mode != "RGB":
        raise UsageError(f"a picture of mode {image.mode} was given, wanted is RGB. Open it with open_image.")
    if views < 1:
        raise UsageError(f"views={views} is too few. Use 1 for the whole picture, 5 for four close looks as well.")
    if views > 1 and shrunk_from(image).factor > 1:
        raise UsageError("a shrunk picture has no native resolution. Open it without minimum_side.")
    pixels = np.empty((views, spec.size, spec.size, 3), np.uint8)
    pixels[0] = np.asarray(centre_square(image, spec))
    boxes = native_boxes(image.width, image.height, spec.size, views - 1)
    for view, box in zip(pixels[1:], boxes, strict=True):
        view[:] = np.asarray(image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box=box))
    return pixels


def centre_square(image: Image.Image, spec: Preprocess) -> Image.Image:
    """Return the ``size`` x ``size`` centre of ``image`` resized so that its shorter side is ``size``.

    The whole picture is resized although only its centre is needed: Pillow rounds, and since version 13 even chooses
    which axis comes first, by the shape it is given, and both show at sharp edges.

    A picture that was shrunk while it was opened is no longer equal anyway. Of it only the centre is computed, where
    it lay in the full picture: the same arithmetic on the shrunk size would shift it by up to half a pixel.
    """
    size, resampling = spec.size, _FILTERS[spec.interpolation]
    full = shrunk_from(image)
    width, height, left, upper = centre(full.width, full.height, size)
    if full.factor == 1 and width * height <= _WHOLE_PIXELS:
        whole = image.resize((width, height), resampling)
        # not Image.crop, which minds Pillow's MAX_IMAGE_PIXELS: max_pixels is ours
        return Image.fromarray(np.asarray(whole)[upper : upper + size, left : left + size])
    across, down = full.width / full.factor / width, full.height / full.factor / height
    right, lower = min((left + size) * across, image.width), min((upper + size) * down, image.height)
    return image.resize((size, size), resampling, box=(left * across, upper * down, right, lower))


def centre(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Width and height of a picture whose shorter side has become ``size``, left and upper edge of its centre.

    The longer side is cut to an integer and the offsets are rounded half to even, as torchvision does.
    """
    shorter = min(width, height)
    resized = size * width // shorter, size * height // shorter
    return *resized, round((resized[0] - size) / 2), round((resized[1] - size) / 2)


def native_boxes(width: int, height: int, size: int, count: int) -> list[Box]:
    """Return ``count`` squares of at most ``size`` pixels, each in the middle of a cell of a grid over the picture.

    Deterministic, whole pixels, inside the picture; the cells are as square as they can be, and the squares overlap
    where the picture is small.
    """
    if count == 0:
        return []
    side = min(size, width, height)
    rows = min(max(round(math.sqrt(count * height / width)), 1), count)
    boxes: list[Box] = []
    for row in range(rows):
        columns = count * (row + 1) // rows - count * row // rows
        upper = _start_in_cell(height, side, row, rows)
        for column in range(columns):
            left = _start_in_cell(width, side, column, columns)
            boxes.append((left, upper, left + side, upper + side))
    return boxes


def _start_in_cell(length: int, side: int, cell: int, cells: int) -> int:
    start = (2 * cell + 1) * length // (2 * cells) - side // 2
    return min(max(start, 0), length - side)
