from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save_picture(path: Path, seed: int) -> Path:
    """A small picture whose fake scores depend on the seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise // 2 + np.uint8(29 * seed % 128)).save(path)
    return path


@pytest.fixture(autouse=True, scope="session")
def signals() -> Iterator[None]:
    """Ctrl-C reaches what tests start, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures, a broken one, a subfolder with another, and what is not to be looked at."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for seed, name in enumerate(["a.jpg", "b.PNG", "c.webp", "sub/d.jpg", ".hidden.jpg", ".thumbnails/t.jpg"]):
        save_picture(folder / name, seed)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not even called one")
    return folder
