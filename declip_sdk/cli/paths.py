"""Which images the command line scores: files as given, folders walked, or paths read from standard input."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from declip_runtime.errors import ImageNotFoundError, UsageError
from declip_runtime.scores import Score

# What cameras, phones and editors save as a finished picture and Pillow decodes. A file named on the command line is
# tried whatever it is called.
IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in "jpg jpeg jpe jfif png webp avif tif tiff bmp gif jp2 j2k ppm pgm pnm psd".split()  # noqa: SIM905
)
# Photos too, but nothing here decodes them; walking past them in silence would look like having scored them.
UNREADABLE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in "heic heif jxl dng cr2 cr3 nef arw orf rw2 raf pef srw".split()  # noqa: SIM905
)

_CHUNK = 1 << 16


@dataclass
class Found:
    """Image paths in the order given, folders by the names in them; what could not be looked into; what was left."""

    images: list[str] = field(default_factory=list)
    unreadable_folders: list[str] = field(default_factory=list)
    unreadable_formats: Counter[str] = field(default_factory=Counter)


def find_images(paths: Iterable[str], recursive: bool) -> Found:
    """Take files as named and walk folders, their subfolders only when ``recursive``.

    Hidden files and folders are passed over; symbolic links to folders are not followed. Raises UsageError for an
    empty path.
    """
    found = Found()
    for path in paths:
        if not path:
            raise UsageError("one of the paths is empty. Name a photo or a folder; is a variable not set?")
        if _is_folder(path):
            _walk(path, recursive, found)
        else:
            found.images.append(path)
    return found


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - a Path would normalise what the user typed
    except (OSError, ValueError):  # scoring it gives the better message
        return False


def _walk(folder: str, recursive: bool, found: Found) -> None:
    def unreadable(error: OSError) -> None:
        found.unreadable_folders.append(f"{error.filename}: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        for name in sorted(f for f in files if not f.startswith(".")):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if suffix in IMAGE_SUFFIXES:
                found.images.append(os.path.join(parent, name))  # noqa: PTH118
            elif suffix in UNREADABLE_SUFFIXES:
                found.unreadable_formats[suffix] += 1


def read_paths(descriptor: int, separator: bytes) -> Iterator[str]:
    """Yield the paths that arrive on a file descriptor, each as soon as its separator is there, empty ones included.

    A line may end in CR LF; a name that itself ends in CR needs NUL as the separator.

    Reads the descriptor itself: a thread that waits inside a buffered reader holds its lock, which the interpreter
    needs when it shuts down after Ctrl-C. Raises UsageError where it cannot be read.
    """
    pending = b""
    while chunk := _read(descriptor):
        *complete, pending = (pending + chunk).split(separator)
        yield from (_path(line, separator) for line in complete)
    if pending:
        yield _path(pending, separator)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        raise UsageError(
            f"standard input cannot be read: {error.strerror}. Redirect it from a file or a pipe."
        ) from error


def _path(line: bytes, separator: bytes) -> str:
    return os.fsdecode(line.removesuffix(b"\r") if separator == b"\n" else line)


def explained(score: Score) -> Score:
    """The score with advice for the command line where the library's is for programs: empty paths and folders."""
    if not isinstance(score.error, ImageNotFoundError):
        return score
    if not score.image:
        return replace(score, error=ImageNotFoundError("the path is empty. Give the path of a photo."))
    if _is_folder(score.image):
        advice = "Give the paths of its photos; folders are walked when they are arguments."
        return replace(score, error=ImageNotFoundError(f"{score.image!r} is a folder. {advice}"))
    return score
