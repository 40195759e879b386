"""Flickr8k: 8,091 photos with five human captions each, used as semantic descriptions (T_s).

``images`` is a folder of JPEGs, ``captions`` the official ``Flickr8k.token.txt`` (``name.jpg#k<TAB>caption``).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from declip_runtime.errors import TrainingError


@dataclass(frozen=True)
class Captioned:
    """One photo with what people wrote about its content."""

    path: Path
    captions: tuple[str, ...]


def read_flickr8k(images: Path, captions: Path) -> list[Captioned]:
    """Photos that have both a file and captions, sorted by name. Raises TrainingError naming what is missing."""
    if not captions.is_file():
        raise TrainingError(f"Flickr8k captions are missing: {captions}. They are the official Flickr8k.token.txt.")
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for line in captions.read_text(encoding="utf-8").splitlines():
        key, _, caption = line.partition("\t")
        if caption:
            texts[key.partition("#")[0]].append(caption.strip())
    found = [Captioned(p, tuple(texts[p.name])) for p in sorted(images.glob("*.jpg")) if p.name in texts]
    if not found:
        raise TrainingError(f"no photo in {images} has a caption in {captions}. Are these the Flickr8k images?")
    return found


def read_split(names: Path) -> frozenset[str]:
    """File names of an official list, such as ``Flickr_8k.testImages.txt``; TrainingError where it is missing."""
    if not names.is_file():
        raise TrainingError(f"a list of Flickr8k's splits is missing: {names}. It comes with the official captions.")
    return frozenset(names.read_text(encoding="utf-8").split())
