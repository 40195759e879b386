"""Where pictures go: PNG files that are checked before minutes of work, and that nobody misses what they replace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from declip_runtime.errors import ImageError, UsageError
from declip_runtime.generation.record import read_record

from .output import require_place


def require_picture_places(places: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raise now where one of ``places`` is none for a picture: its record needs a .png file.

    Replaced is only what has such a record itself, and none of the ``inputs``. Raises UsageError or OutputError.
    """
    taken = list(inputs)
    for place in places:
        if place.suffix.lower() != ".png":
            raise UsageError(f"{place} is no .png file, which alone keeps how a picture was made. Name one.")
        require_place(place, taken, may_replace=_is_generated)
        if place.exists() and not place.is_file():
            raise UsageError(f"{place} is a pipe, socket or device. Name a file to write.")


def numbered(output: Path, pictures: int) -> list[Path]:
    """A place for each picture: ``output`` for one, else with numbers of as many digits, so that names sort."""
    if pictures == 1:
        return [output]
    digits = len(str(pictures))
    return [output.with_stem(f"{output.stem}-{number:0{digits}}") for number in range(1, pictures + 1)]


def unused(name: str, pictures: int = 1) -> Path:
    """The first of ``name``, and of it with _2, _3, ..., whose places and folder are all free."""
    output = Path(name)
    candidates = chain([output], (output.with_stem(f"{output.stem}_{number}") for number in count(2)))
    return next(
        candidate
        for candidate in candidates
        if not any(place.exists() for place in (candidate.with_suffix(""), *numbered(candidate, pictures)))
    )


def _is_generated(path: Path) -> bool:
    try:
        read_record(path)
    except (ImageError, UsageError):
        return False
    return True
