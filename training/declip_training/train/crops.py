"""Random crops of an image, each a pure function of seed, record and number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_runtime.images import open_image
from declip_runtime.manifest import Preprocess

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RandomCrops:
    """Squares at random places, their side uniform between ``least`` and 1 of the picture's shorter side.

    The paper says "random cropping" and no more. Squares keep the proportions, which descriptions of a look speak of;
    open_clip's own training crops (90 to 100 % of the area, stretched by up to 4:3) do not.
    """

    preprocess: Preprocess
    least: float
    seed: int

    def open(self, path: Path) -> Image.Image:
        """The picture, decoded at no more than twice the resolution that the smallest crop needs.

        Raises ImageError where it cannot be read.
        """
        return open_image(path, minimum_side=math.ceil(2 * self.preprocess.size / self.least))

    def of(self, image: Image.Image, record_id: str, numbers: Iterable[int]) -> list[Pixels]:
        """Crops uint8 [S, S, 3] with the given numbers, resized as the tower's pictures are."""
        size, resampling = self.preprocess.size, Image.Resampling[self.preprocess.interpolation.upper()]
        boxes = [self.box(image.width, image.height, record_id, number) for number in numbers]
        return [np.asarray(image.resize((size, size), resampling, box=box)) for box in boxes]

    def box(self, width: int, height: int, record_id: str, number: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge of a crop in pixels, inside the picture."""
        seed = hashlib.sha256(f"{self.seed}/{number}/{record_id}".encode("utf-8", "surrogatepass")).digest()
        share, across, down = np.random.default_rng(int.from_bytes(seed[:16], "big")).random(3)
        side = max(1.0, (self.least + (1 - self.least) * float(share)) * min(width, height))
        left, upper = float(across) * (width - side), float(down) * (height - side)
        return left, upper, min(left + side, width), min(upper + side, height)
