"""Which images the command line scores: files as given, folders walked, or paths read from standard input."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from declip_runtime.errors import ImageError, ImageNotFoundError, UsageError
from declip_runtime.scores import Score

from .heif import SUFFIXES as HEIF_SUFFIXES
from .heif import register_heif
from .text import count
from .words import in_words_of_options

# What cameras, phones and editors save as a finished picture and Pillow decodes. A file named on the command line is
# tried whatever it is called.
IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in "jpg jpeg jpe jfif mpo png webp avif tif tiff bmp gif jp2 j2k ppm pgm pnm psd".split()  # noqa: SIM905
)
# Photos too, but Pillow alone decodes none of them; walking past them in silence would look like having scored them.
UNREADABLE_SUFFIXES = HEIF_SUFFIXES | frozenset(
    f".{kind}"
    for kind in (
        "jxl dng cr2 cr3 crw nef nrw arw sr2 orf rw2 rwl raf pef srw 3fr iiq x3f gpr erf mef kdc".split()  # noqa: SIM905
    )
)

_CHUNK = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # as Windows puts before a text


@dataclass
class Found:
    """Image paths in the order given, folders by the names in them; what could not be looked into; what was left.

    Hidden files count where their extension is that of an image; hidden folders are not looked at.
    """

    images: list[str] = field(default_factory=list)
    unreadable_folders: list[str] = field(default_factory=list)
    unreadable_formats: Counter[str] = field(default_factory=Counter)
    subfolders: int = 0
    linked_folders: int = 0
    hidden: int = 0

    def passed_over(self) -> str:
        """What was left, and how to have it scored; empty where nothing was."""
        parts = []
        if self.unreadable_formats:
            kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in self.unreadable_formats.most_common())
            advice = "export them as JPEG"
            if self.unreadable_formats.keys() & HEIF_SUFFIXES:
                advice += ", or for HEIC run: pip install pillow-heif"
            parts.append(f"{kinds} (formats that cannot be decoded here: {advice})")
        if self.subfolders:
            parts.append(f"{count(self.subfolders, 'subfolder')} (-r enters subfolders)")
        if self.linked_folders:
            parts.append(f"{count(self.linked_folders, 'link')} to folders (links are entered when they are named)")
        if self.hidden:
            parts.append(f"{count(self.hidden, 'hidden image')} (hidden files are scored when they are named)")
        return "; ".join(parts)


def find_images(paths: Iterable[str], recursive: bool) -> Found:
    """Take files as named and walk folders, their subfolders only when ``recursive``.

    Hidden files and folders are passed over; symbolic links to folders are followed only where they are named. Raises
    UsageError for an empty path.
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

    readable = IMAGE_SUFFIXES | HEIF_SUFFIXES if register_heif() else IMAGE_SUFFIXES
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        visible = sorted(f for f in folders if not f.startswith("."))
        inner = [f for f in visible if not os.path.islink(os.path.join(parent, f))]  # noqa: PTH114, PTH118
        found.linked_folders += len(visible) - len(inner)
        found.subfolders += 0 if recursive else len(inner)
        folders[:] = inner if recursive else []
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if name.startswith("."):
                found.hidden += suffix in readable
            elif suffix in readable:
                found.images.append(os.path.join(parent, name))  # noqa: PTH118
            elif suffix in UNREADABLE_SUFFIXES:
                found.unreadable_formats[suffix] += 1


def require_images(found: Found, paths: Iterable[str]) -> None:
    """Raise UsageError with what there was instead, where there are no images."""
    if not found.images:
        instead = found.passed_over()
        reason = f"; passed over: {instead}." if instead else f" (looked for {' '.join(sorted(IMAGE_SUFFIXES))})."
        raise UsageError(f"no images in {', '.join(paths)}{reason}")


def read_list(descriptor: int, separator: bytes) -> Iterator[str]:
    """Wait for the first path on a file descriptor, and return the iterator of all; blank lines are skipped.

    Raises UsageError where there is no path at all.
    """
    paths = (path for path in read_paths(descriptor, separator) if path.strip())
    first = next(paths, None)
    if first is None:
        raise UsageError("no paths on standard input. Give one a line, as `find photos -name '*.jpg'` does.")
    return chain([first], paths)


def read_paths(descriptor: int, separator: bytes) -> Iterator[str]:
    """Yield the paths that arrive on a file descriptor, each as soon as its separator is there, empty ones included.

    A line may end in CR LF; a name that itself ends in CR needs NUL as the separator.

    Reads the descriptor itself: a thread that waits inside a buffered reader holds its lock, which the interpreter
    needs when it shuts down after Ctrl-C. Raises UsageError where it cannot be read.
    """
    for number, line in enumerate(_lines(descriptor, separator)):
        path = line if number else line.removeprefix(_BYTE_ORDER_MARK)
        yield os.fsdecode(path.removesuffix(b"\r") if separator == b"\n" else path)


def _lines(descriptor: int, separator: bytes) -> Iterator[bytes]:
    pending = b""
    while chunk := _read(descriptor):
        *complete, pending = (pending + chunk).split(separator)
        yield from complete
    if pending:
        yield pending


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        raise UsageError(
            f"standard input cannot be read: {error.strerror}. Redirect it from a file or a pipe."
        ) from error


def explained(score: Score) -> Score:
    """The score with advice for the command line where the library's is for programs."""
    if not isinstance(score.error, ImageError):
        return score
    if not score.image.strip():
        return replace(score, error=ImageNotFoundError("the path is empty. Give the path of a photo."))
    if _is_folder(score.image):
        advice = "Give the paths of its photos; folders are walked when they are arguments."
        return replace(score, error=ImageNotFoundError(f"{score.image!r} is a folder. {advice}"))
    name, told = repr(score.image), str(score.error)
    reason = told.removeprefix(name)  # a name is shown as it is, whatever words it has
    words = in_words_of_options(reason)
    return score if words == reason else replace(score, error=type(score.error)(told[: -len(reason)] + words))
