"""Conditions of generated pictures: what each shall look like and what it shall show, by an image or by a text.

A line of the file (JSON Lines, or CSV with a heading) has one of ``perceptual_image`` and ``perceptual_text``, one of
``semantic_image`` and ``semantic_text``, at least one image, and, if its pictures shall be called something else than
its number, ``name``. Paths are relative to the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.images import open_image

Aspect = Literal["perceptual", "semantic"]
ASPECTS: tuple[Aspect, ...] = ("perceptual", "semantic")
COLUMNS = ("name", "perceptual_image", "perceptual_text", "semantic_image", "semantic_text")

CONTROLS = (
    "perceptual image + semantic text",
    "semantic image + perceptual text",
    "perceptual image + semantic image",
)
"""Types of control; the first two are the paper's (eq. 10)."""

Row = Mapping[str, object]

_NAME = re.compile(r"[\w(+](?:[\w .()+-]*[\w)+-])?")
_LONGEST_NAME = 120
"""Bytes; method, strength and seed are added to a picture's name."""


@dataclass(frozen=True)
class Condition:
    """One line of the file. A Path is an image, a str a text; at least one of the two is an image."""

    line: int
    name: str
    perceptual: Path | str
    semantic: Path | str

    @property
    def images(self) -> dict[Aspect, Path]:
        """The images, by what of them counts."""
        both = {aspect: getattr(self, aspect) for aspect in ASPECTS}
        return {aspect: given for aspect, given in both.items() if isinstance(given, Path)}

    @property
    def text(self) -> str:
        """The text; '' where both are images."""
        return next((given for given in (self.perceptual, self.semantic) if isinstance(given, str)), "")

    @property
    def control(self) -> str:
        """Which of CONTROLS it is."""
        if len(self.images) == 2:
            return CONTROLS[2]
        return CONTROLS[0] if "perceptual" in self.images else CONTROLS[1]

    @property
    def columns(self) -> dict[str, str]:
        """``name`` and the two of the file's columns that it has."""
        given = {aspect: getattr(self, aspect) for aspect in ASPECTS}
        kinds = {aspect: "image" if isinstance(value, Path) else "text" for aspect, value in given.items()}
        return {"name": self.name, **{f"{aspect}_{kinds[aspect]}": str(value) for aspect, value in given.items()}}


def read_conditions(path: Path) -> list[Condition]:
    """Read and check a whole file of conditions (.jsonl or .csv, UTF-8); every image in it is opened once.

    Raises UsageError for a file that cannot be read or that holds no condition, and one that lists every bad line with
    its number and reason.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path} is no file of conditions. Give one that ends in {' or '.join(_READERS)}.")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the conditions in {path} cannot be read ({reason}). Give a file in UTF-8.") from error
    checker = _Checker(path.parent)
    conditions: list[Condition] = []
    problems: list[str] = []
    for line, parse in reader(text, path):
        try:
            conditions.append(checker.condition(line, parse()))
        except DeclipError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        listed = "\n".join(problems)
        raise UsageError(f"{len(problems)} of the lines in {path} are no condition. Correct them:\n{listed}")
    if not conditions:
        raise UsageError(
            f"{path} holds no condition. Write one a line, as "
            '{"perceptual_image": "night.jpg", "semantic_text": "a red house"}.'
        )
    return conditions


class _Checker:
    """Makes conditions of rows; knows what earlier lines were called, said, and which images they opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, int] = {}
        self._said: dict[tuple[Path | str, Path | str], int] = {}
        self._opened: dict[Path, DeclipError | None] = {}

    def condition(self, line: int, row: Row) -> Condition:
        """The condition of one row. Raises UsageError and ImageError."""
        if unknown := [str(name) for name in row if name not in COLUMNS]:
            raise UsageError(f"{', '.join(map(repr, unknown))} is no column. Use {', '.join(COLUMNS)}.")
        cells = {name: _text(name, row.get(name)) for name in COLUMNS}
        perceptual, semantic = (self._given(aspect, cells) for aspect in ASPECTS)
        if isinstance(perceptual, str) and isinstance(semantic, str):
            raise UsageError("it has two texts, and no image to take anything from. Give one of them as an image.")
        name = cells["name"] or f"{line:04}"
        if not _NAME.fullmatch(name) or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
            raise UsageError(
                f"the name {name!r} cannot become a file. Use letters, digits, blanks and . _ - + ( ), no more than "
                f"{_LONGEST_NAME} bytes."
            )
        other = self._names.setdefault(name.casefold(), line)  # many file systems ignore case
        if other != line:
            raise UsageError(f"it is called {name!r}, and so is line {other}. Give it another name.")
        other = self._said.setdefault((perceptual, semantic), line)
        if other != line:
            raise UsageError(f"it is the condition of line {other} again. Remove one; --seeds makes more pictures.")
        for image in (given for given in (perceptual, semantic) if isinstance(given, Path)):
            self._require_image(image)
        return Condition(line, name, perceptual, semantic)

    def _given(self, aspect: Aspect, cells: Mapping[str, str]) -> Path | str:
        image, text = cells[f"{aspect}_image"], cells[f"{aspect}_text"]
        if bool(image) == bool(text):
            what = "has both" if image else "has neither"
            raise UsageError(f"it {what} {aspect}_image and {aspect}_text. Give one of them.")
        return self._folder / image if image else text

    def _require_image(self, path: Path) -> None:
        if path not in self._opened:
            try:
                open_image(path)
                self._opened[path] = None
            except DeclipError as error:
                self._opened[path] = error
        known = self._opened[path]
        if known is not None:
            raise known


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}. Give text.")
    text = value.strip()
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"{name} {text!r} holds half a character, or none. Type it again.")
    return text


Parsed = Iterator[tuple[int, Callable[[], Row]]]
"""Line numbers, and what gives the row or raises UsageError."""


def _json_lines(text: str, path: Path) -> Parsed:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, partial(_object, line)


def _object(line: str) -> Row:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        row = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not JSON ({error}). Write one object a line.") from error
    if not isinstance(row, dict):
        raise UsageError("it is no JSON object. Write one a line, with the columns as its keys.")
    return row


def _csv_rows(text: str, path: Path) -> Parsed:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    heading: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if heading is None:
                heading = _heading([cell.strip() for cell in cells], path)
            else:
                yield reader.line_num, partial(_record, heading, cells)
    except csv.Error as error:
        raise UsageError(
            f"line {reader.line_num} of {path} is not CSV ({error}). Save it as UTF-8 with quoted texts."
        ) from error


def _heading(names: list[str], path: Path) -> list[str]:
    """The names of the columns, which every line would otherwise complain of."""
    wrong = [name for name in names if name not in COLUMNS]
    if wrong or len(set(names)) != len(names):
        what = f"{', '.join(map(repr, wrong))} is no column" if wrong else "a column stands there twice"
        raise UsageError(f"the heading of {path}: {what}. Use {', '.join(COLUMNS)}.")
    return names


def _record(heading: list[str], cells: list[str]) -> Row:
    if len(cells) != len(heading):
        raise UsageError(f"it has {len(cells)} cells, the heading has {len(heading)}. Quote texts that hold a comma.")
    return dict(zip(heading, cells, strict=True))


_READERS: Mapping[str, Callable[[str, Path], Parsed]] = {".jsonl": _json_lines, ".csv": _csv_rows}
