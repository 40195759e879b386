"""JPEG files that a GPU may decode: their bytes, and what their headers say."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from .color import changes_colours
from .decoders import identify, orientation, vendor_boundary
from .images import Source, check_size, describe, open_file

_FORMATS = ("JPEG", "MPO")  # the latter is a JPEG with more pictures behind it
_START, _END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"
_NO_TRANSFORM = 0  # Adobe's mark of three channels that are red, green and blue already


@dataclass(frozen=True)
class Jpeg:
    """A whole JPEG with pixels of 8 bits in the usual colours.

    ``orientation`` is EXIF's, ``profile`` an ICC profile that changes colours, or None.
    """

    content: bytes
    width: int
    height: int
    orientation: object
    profile: bytes | None


def read_jpeg(source: Source, max_pixels: int) -> Jpeg | None:
    """Read a path or bytes, and return None unless that is a JPEG which every decoder reads alike.

    None are: other formats, CMYK, RGB that was not transformed, grey with a profile, and files that are cut off, which
    some decoders fill with grey and say nothing of.

    Raises ImageNotFoundError, ImageDecodeError and ImageTooLargeError as ``open_image``.
    """
    name = describe(source)
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif isinstance(source, str | os.PathLike):
        with open_file(Path(os.fsdecode(source)), name) as file, vendor_boundary(name):
            head = file.read(len(_START))
            if head != _START:
                return None
            content = head + file.read()
    else:
        return None
    if not content.startswith(_START):
        return None
    with vendor_boundary(name), identify(io.BytesIO(content), name) as image:
        check_size(image.size, name, max_pixels)
        profile = image.info.get("icc_profile")
        if profile is not None and not changes_colours(profile, image.mode):
            profile = None
        channels = [layer[0] for layer in getattr(image, "layer", ())]
        transformed = image.info.get("adobe_transform") != _NO_TRANSFORM and bytes(channels) != b"RGB"
        usual = image.mode == "RGB" and transformed
        grey = image.mode == "L" and profile is None
        if image.format not in _FORMATS or not (usual or grey) or not _whole(content):
            return None
        return Jpeg(content, image.width, image.height, orientation(image), profile)


def _whole(content: bytes) -> bool:
    """Whether the picture's end is there: it begins with a scan, and its last mark is no thumbnail's."""
    return content.rfind(_END) > _first_scan(content)


def _first_scan(content: bytes) -> int:
    """Where the first scan of the picture itself begins, behind every segment (and so behind a thumbnail)."""
    place = 2
    while content[place : place + 2] != _SCAN:
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        if content[place : place + 1] != b"\xff" or length < 2:
            return len(content)
        place += 2 + length
    return place
