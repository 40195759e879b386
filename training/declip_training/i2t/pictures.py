"""Images as an endpoint or a web page takes them: small JPEGs in data URLs; and the hash of their files."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from declip_runtime.errors import ImageNotFoundError
from declip_runtime.images import open_image

_JPEG_QUALITY = 90


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises ImageNotFoundError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ImageNotFoundError(f"{str(path)!r} cannot be read: {error.strerror}. Check the path.") from error
    return digest.hexdigest()


def data_url(path: Path, max_side: int) -> str:
    """The image upright, in sRGB, no side longer than ``max_side`` pixels, as a JPEG in a data URL.

    Raises ImageError for what cannot be opened.
    """
    image = open_image(path, minimum_side=2 * max_side)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def sent_size(path: Path, max_side: int) -> tuple[int, int] | None:
    """Width and height in pixels as ``data_url`` would send it, from the file's header; None where there is none."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, NotImplementedError, Image.DecompressionBombError):
        return None
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
