"""Pictures of 12 to 24 megapixels, made from smaller photos because none that large may be redistributed.

Both functions need sources: a folder of photos (``--photos``; the larger the better, such as the validation set of
CLIC 2025), else the samples that come with scikit-image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZES = ((4000, 3000), (4896, 3264), (6000, 4000))
QUALITY = 92
GRAIN = 4.0
Pixels = npt.NDArray[np.uint8]


def originals(folder: Path | None) -> list[Image.Image]:
    """All photos of a folder, or the colour samples of scikit-image."""
    if folder is not None:
        return [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    from skimage import data

    return [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "cat", "coffee", "rocket")]


def make_jpegs(folder: Path, count: int, source: Path | None) -> list[str]:
    """Write ``count`` different JPEGs of 12, 16 and 24 megapixels and return their paths.

    Enlarged photos alone compress too well, which flatters decoding: grain of the strength of a camera at moderate
    sensitivity brings them to about 2 bits a pixel, the low end of a camera's own files.
    """
    rng = np.random.default_rng(0)
    paths = []
    for number, (photo, size) in enumerate(islice(zip(cycle(originals(source)), cycle(SIZES), strict=False), count)):
        upright = size if photo.width >= photo.height else size[::-1]
        large = np.asarray(photo.resize(upright, Image.Resampling.LANCZOS), np.float32)
        grainy = large + GRAIN * rng.standard_normal((*large.shape[:2], 1), np.float32)
        path = folder / f"{number:02}.jpg"
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        paths.append(str(path))
    return paths


def sharp_pictures(count: int, source: Path | None) -> Iterator[Pixels]:
    """``count`` pictures of 12, 16 and 24 megapixels in turn, uint8 [H, W, 3], sharp down to the pixel.

    Enlarging would blur them, so each photo is continued by its mirror images instead.
    """
    for photo, (width, height) in islice(zip(cycle(originals(source)), cycle(SIZES), strict=False), count):
        pixels = np.asarray(photo)
        rows, columns = max(0, height - len(pixels)), max(0, width - pixels.shape[1])
        yield np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="symmetric")[:height, :width]
