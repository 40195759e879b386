"""Photos decoded once, kept as one memory-mapped uint8 array: what many epochs read is never decoded twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from declip_runtime.errors import TrainingError
from declip_training.files import allocate_npy, replacing, writing


def build_pixel_bank(paths: Sequence[Path], side: int, folder: Path) -> npt.NDArray[np.uint8]:
    """Memory-mapped uint8 [N, side, side, 3]: shorter side resized to ``side`` (bicubic), centre square kept.

    Keyed by the paths, their sizes and ``side``; a bank that exists is reopened. Written to a temporary name first, so
    that a killed run leaves no half bank. Raises TrainingError naming a photo that cannot be decoded, and for a disk
    that has no room for the bank, before anything is decoded.
    """
    digest = hashlib.sha256(str(side).encode())
    for path in paths:
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
    target = folder / f"pixels-{side}-{digest.hexdigest()[:16]}.npy"
    if not target.is_file():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            allocate_npy(partial, (len(paths), side, side, 3), np.uint8)
            bank = np.load(partial, mmap_mode="r+")

            def fill(index: int) -> None:
                bank[index] = load_square(paths[index], side)

            with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                for _ in pool.map(fill, range(len(paths))):
                    pass
            bank.flush()
    opened: npt.NDArray[np.uint8] = np.load(target, mmap_mode="r")
    return opened


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """TrainingError, with the name of the photo, for what Pillow raises while it is decoded."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainingError(
            f"{path} cannot be decoded: {error}. Take the photo from its repository again, and give the same command."
        ) from error


def photos_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the photos' names and sizes, whatever their order."""
    names = sorted(f"{path.name}:{path.stat().st_size};" for path in paths)
    return hashlib.sha256("".join(names).encode()).hexdigest()


def load_square(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """One photo as uint8 [side, side, 3], resized and cropped as the tower's evaluation transform does."""
    with decoding(path), Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = side / min(image.size)
    if scale != 1.0:
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))
