"""Pillow's decoders behind one door: its exceptions end here, and its process-wide settings are not touched.

``PIL.Image.open`` is not used, because it compares every picture with ``PIL.Image.MAX_IMAGE_PIXELS``, then warns or
raises, and could be quietened for the whole process only; callers have a limit of their own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image

from .errors import DeclipError, ImageDecodeError, ImageTooLargeError

# Formats of photographs. Pillow reads more, but those run other programs (EPS), are icons, or have no signature, so
# that any bytes could pass for them. HEIF and JXL count once the application has registered a plugin for them.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "PSD", "HEIF", "JXL")

# What people take for a picture and Pillow alone does not read: what it is, and what to do. It is known by how the
# file begins, or by the brands of its ISO base media (ftyp) box.
_RAW = ("a camera raw file", "Export it as JPEG.")
_HEIF = (
    "a HEIC or HEIF picture, which needs a plugin",
    "Export it as JPEG, or run: pip install pillow-heif (a program then calls pillow_heif.register_heif_opener()).",
)
_JXL = (
    "a JPEG XL picture, which needs a plugin",
    "Export it as JPEG; in Python: pip install pillow-jxl-plugin, then import pillow_jxl.",
)
_AVIF = ("an AVIF picture, which this Pillow was built without", "Install Pillow 11.3 or newer, or export it as JPEG.")
_VIDEO = ("a video or audio file", "Export one of its frames as JPEG.")
_RAW_BEGINNINGS = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM")
_JXL_BEGINNINGS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))

# What decoders are known to raise on damaged input. Warning: the application may have turned warnings into errors.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    BufferError,
    EOFError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
)

_ORIENTATION, _NEW_SUBFILE_TYPE, _DNG_VERSION = 274, 254, 50706


@contextmanager
def vendor_boundary(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on the picture called ``name`` into ImageDecodeError or ImageTooLargeError."""
    try:
        yield
    except DeclipError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLargeError(f"{name} needs too much memory ({reason(error)}). Scale it down first.") from error
    except _PILLOW_ERRORS as error:
        raise ImageDecodeError(f"{name} cannot be decoded ({reason(error)}). Copy or export it again.") from error


def reason(error: BaseException) -> str:
    """Return the message of another library's exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def identify(file: IO[bytes], name: str) -> Image.Image:
    """Return the picture in ``file`` with its header read and its pixels not, by the signature of its first bytes.

    Raises ImageDecodeError for no bytes, an unknown signature and camera raw files, and Pillow's exceptions.
    """
    head = file.read(256)
    if not head:
        raise ImageDecodeError(f"{name} is empty (0 bytes). Copy or export it again.")
    prefix, brands = head[:16], _brands(head)
    Image.preinit()
    for format_name in FORMATS:
        if format_name == "AVIF" and brands.isdisjoint(_AVIF_BRANDS):
            continue  # its decoder would also claim pictures of HEIF whose first brand is a general one
        if format_name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(format_name, (None, None))
        if factory is not None and accept is not None and accept(prefix) is True:
            file.seek(0)
            image: Image.Image = factory(file, "")
            _refuse_raw_preview(image, prefix, name)
            return image
    if known := _known(head, brands):
        raise ImageDecodeError(f"{name} is {known[0]}. {known[1]}")
    raise ImageDecodeError(
        f"{name} is not an image in a known format, it begins with {prefix[:12]!r}. "
        f"Readable here: {', '.join(f for f in FORMATS if f in Image.OPEN)}."
    )


def _brands(head: bytes) -> frozenset[bytes]:
    """Return the brands in the ftyp box that ISO base media files begin with, none for other files."""
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return frozenset((head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))))


def _known(head: bytes, brands: frozenset[bytes]) -> tuple[str, str] | None:
    """Return what it is and what to do about it, for what is known and not read."""
    if b"crx " in brands or head.startswith(_RAW_BEGINNINGS):
        return _RAW
    if head.startswith(_JXL_BEGINNINGS):
        return _JXL
    if brands & _AVIF_BRANDS:
        return _AVIF
    if brands & _HEIF_BRANDS:
        return _HEIF
    return _VIDEO if brands else None


def _refuse_raw_preview(image: Image.Image, prefix: bytes, name: str) -> None:
    """Camera raw files are TIFFs whose first picture is a thumbnail, and nobody wants the score of a thumbnail."""
    tags = getattr(image, "tag_v2", {})
    canon = image.format == "TIFF" and prefix[8:10] == b"CR"
    if canon or _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE) == 1:
        raise ImageDecodeError(f"{name} is a camera raw file, of which only a preview can be read. Export it as JPEG.")


def allocate(image: Image.Image) -> None:
    """Give a TIFF its memory before Pillow does, which would compare its size with MAX_IMAGE_PIXELS once more."""
    size = getattr(image, "_tile_size", None)
    if size is not None and getattr(image, "_im", image) is None:
        image.im = Image.core.new(image.mode, size)  # type: ignore[attr-defined]


def orientation(image: Image.Image) -> object:
    """Return the EXIF orientation, 1 to 8 where the camera keeps to the standard; None where EXIF is damaged."""
    try:
        return image.getexif().get(_ORIENTATION)
    except _PILLOW_ERRORS:
        return None
