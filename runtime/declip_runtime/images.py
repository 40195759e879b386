"""From whatever holds a picture to an upright 8-bit sRGB image, or one error that says why not."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arrays import from_array, require_picture
from .color import eight_bit, to_srgb
from .decoders import allocate, identify, orientation, reason, vendor_boundary
from .errors import ImageDecodeError, ImageNotFoundError, ImageTooLargeError, UsageError
from .tensors import DeviceTensor, Tensor, exchanged, is_tensor

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]
"""One picture: a path, encoded bytes, a binary file object, a PIL image, or a uint8 array [H, W, 3]."""

Channels = Literal["rgb", "bgr"]

DEFAULT_MAX_PIXELS = 250_000_000
"""Above every camera (medium format has 151 million, phones 200), and 1 GB while it is decoded."""

_SHRUNK = "declip_shrunk"

# Pillow takes the edges of a crop as 32-bit floats, which are exact up to here.
_LONGEST_SIDE = 1 << 24

# Two threads that read one file object or load one PIL image at once get pieces of each other's. A few locks serve all
# objects, since one object always meets the same lock.
_TURNS = tuple(threading.Lock() for _ in range(61))

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)


class Shrunk(NamedTuple):
    """The size in pixels of the upright picture before it was shrunk, and by how much each side was divided."""

    width: int
    height: int
    factor: int


def open_image(
    source: Source,
    *,
    minimum_side: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    channels: Channels = "rgb",
) -> Image.Image:
    """Return the picture upright (EXIF 1-8), fully decoded, mode RGB, in sRGB; of an animation the first frame.

    ``minimum_side`` None decodes exactly. A number of pixels allows shrinking while decoding (JPEG: scaled inverse
    DCT; the rest: integer box averages) as long as the shorter side keeps at least that length: fast, meant for a
    picture that is then resized to at most half of ``minimum_side``. ``shrunk_from`` tells by how much.
    ``max_pixels`` bounds width x height, which the header states, before anything is decoded. ``channels`` is the
    order in arrays; files and PIL images know their own.

    A seekable file object is read from its start and left where it stood; another is read from where it stands to
    its end. Threads that open the same object take turns. A PIL image may be returned as it is, and an EXIF orientation
    that it still carries is applied. EXIF that cannot be parsed counts as upright.

    Raises ImageNotFoundError, ImageDecodeError and ImageTooLargeError for this picture, InvalidArrayError for an
    array that is not uint8 [H, W, 3], UsageError for what can be no picture at all, and for another wrong argument.
    """
    if channels not in ("rgb", "bgr"):
        raise UsageError(f"channels={channels!r} is unknown. Use 'rgb' or, for arrays of OpenCV, 'bgr'.")
    if minimum_side is not None and minimum_side < 1:
        raise UsageError(f"minimum_side={minimum_side} is not a length. Use None to decode exactly.")
    name = describe(source)
    if isinstance(source, np.ndarray):
        require_picture(source)
        check_size((source.shape[1], source.shape[0]), name, max_pixels)
        return _finish(from_array(source, channels), minimum_side)
    with vendor_boundary(name), _undecoded(source, name) as image:
        check_size(image.size, name, max_pixels)
        full, scale = image.size, 1
        if minimum_side is not None and image is not source:
            drafted = image.draft(None, (minimum_side, minimum_side))
            scale = round(full[0] / drafted[1][2]) if drafted else 1
        allocate(image)
        image.load()
        # A TIFF may have turned itself while it was loaded.
        return _finish(image, minimum_side, full if scale > 1 else image.size, scale)


def shrunk_from(image: Image.Image) -> Shrunk:
    """Return what ``open_image`` shrank ``image`` from; factor 1 where it did not, or somebody resized it since."""
    note = image.info.get(_SHRUNK)
    if isinstance(note, Shrunk) and image.size == (-(-note.width // note.factor), -(-note.height // note.factor)):
        return note
    return Shrunk(image.width, image.height, 1)


def describe(source: object) -> str:
    """Name a source in a message: printable, one line, and never its content."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{type(source).__name__}, {memoryview(source).nbytes} B>"
    if isinstance(source, np.ndarray):
        return f"<array, {source.dtype} {list(source.shape)}>"
    if isinstance(source, DeviceTensor):
        return f"<tensor, {source.dtype} {list(source.shape)}, cuda:{source.device}>"
    if isinstance(source, Image.Image):
        return f"<PIL image, {source.mode} {source.width} x {source.height}>"
    if hasattr(source, "read"):
        return f"<file object {getattr(source, 'name', type(source).__name__)!r}>"
    return f"<{type(source).__name__}>"


def sources(images: Source | Tensor | Iterable[Source | Tensor]) -> Iterable[Any]:
    """Return one or many pictures as an iterable of single ones; an array [N, H, W, 3] counts as its N pictures.

    So does a tensor. A tensor, or one in a list, becomes an array or, on a GPU, a DeviceTensor here and now; of another
    iterable when it comes. One that does not give its memory stays what it is.
    """
    if isinstance(images, np.ndarray):
        many = images.ndim == 4 or (images.ndim > 0 and images.dtype.kind in "OU")
    elif is_tensor(images):
        return _single([exchanged(images)])
    else:
        alone = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
        many = isinstance(images, Iterable) and not isinstance(images, alone) and not hasattr(images, "read")
    if not many:
        return [images]
    if isinstance(images, list | tuple):  # now, for a library waits for what it computes for the thread that asks
        return _single([exchanged(image) for image in images])
    return _single(images)  # type: ignore[arg-type]


def _single(images: Iterable[Any]) -> Iterator[Any]:
    for image in images:
        taken = exchanged(image)
        if isinstance(taken, np.ndarray | DeviceTensor) and taken.ndim == 4:
            yield from taken
        else:
            yield taken


def _turn(source: object) -> threading.Lock:
    return _TURNS[id(source) // 16 % len(_TURNS)]  # objects begin at multiples of 16


@contextmanager
def _undecoded(source: object, name: str) -> Iterator[Image.Image]:
    """Open the picture as far as its header, and keep its file open until it is decoded."""
    if isinstance(source, Image.Image):
        with _turn(source):
            yield source
    elif isinstance(source, (str, os.PathLike)):
        with open_file(Path(os.fsdecode(source)), name) as file:
            yield identify(file, name)
    else:
        with _turn(source):
            content = _read_all(source, name)
        yield identify(io.BytesIO(content), name)


def open_file(path: Path, name: str) -> BinaryIO:
    """Open the file called ``name`` in messages. Raises ImageNotFoundError with the reason.

    Opening a pipe would wait for its writer and opening a device may do anything: that is looked at before.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageNotFoundError(f"{name} is a folder. Give Path(...).glob('*.jpg'), or use `declip score`.")
        if not stat.S_ISREG(mode):
            raise ImageNotFoundError(f"{name} is a pipe, socket or device, not a file. Read it and give its bytes.")
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageNotFoundError(f"{name} does not exist. Check the path.") from error
    except PermissionError as error:
        raise ImageNotFoundError(f"{name} may not be read by this user. Check its permissions.") from error
    except (OSError, ValueError) as error:
        raise ImageNotFoundError(f"{name} cannot be opened ({reason(error)}). Check the path.") from error


def _read_all(source: Any, name: str) -> bytes | bytearray | memoryview:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return source
    if source is None:
        raise ImageNotFoundError("None was given instead of an image. cv2.imread returns None for an unreadable file.")
    if not hasattr(source, "read"):
        raise UsageError(
            f"{name} is no image. Give a path, bytes, a binary file object, a PIL image or a uint8 array [H, W, 3]; "
            "numpy.asarray turns most other arrays into one."
        )
    try:
        position = source.tell() if getattr(source, "seekable", bool)() else None
        if position is not None:
            source.seek(0)
        data = source.read()
        if position is not None:
            source.seek(position)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} was opened as text. Open it in binary mode ('rb').") from error
    except Exception as error:
        raise ImageDecodeError(f"{name} cannot be read ({reason(error)}). Open it again.") from error
    if not isinstance(data, bytes):
        raise UsageError(f"{name} gives {type(data).__name__}, not bytes. Open it in binary mode ('rb').")
    return data


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise ImageDecodeError for a picture without pixels, ImageTooLargeError for one with too many."""
    width, height = size
    if not width * height:
        raise ImageDecodeError(f"{name} has no pixels. Leave it out.")
    if max(size) > _LONGEST_SIDE:
        raise ImageTooLargeError(f"{name} has {width} x {height} pixels: no photo is so long. Cut it first.")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} pixels, more than max_pixels={max_pixels:,} allows. "
            "Raise max_pixels if you trust the file."
        )


def _finish(
    image: Image.Image, minimum_side: int | None, full: tuple[int, int] | None = None, scale: int = 1
) -> Image.Image:
    """Reduce, turn and convert a loaded picture that was ``full`` before decoding divided its sides by ``scale``."""
    width, height = full or image.size
    turn = orientation(image)
    reduction = 1 if minimum_side is None else max(min(image.size) // minimum_side, 1)
    plain = eight_bit(image)
    small = plain.reduce(reduction) if reduction > 1 else plain
    upright = small.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else small
    rgb = to_srgb(upright, image.info.get("icc_profile"))
    if scale * reduction > 1:
        size = (height, width) if turn in _QUARTER_TURNS else (width, height)
        rgb.info[_SHRUNK] = Shrunk(*size, scale * reduction)
    return rgb
