"""The elements of a JSON array one by one, or the lines of JSON Lines: files of gigabytes are not held in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from declip_runtime.errors import TrainingError
from declip_training.i2t.tally import Tally

_CHUNK = 1 << 20
_BLANK = " \t\r\n"
_ENDS = (*_BLANK, ",", "]")
LINES = (".jsonl", ".ndjson")


def json_objects(path: Path, tally: Tally, of: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) for every object of a JSON array, or of JSON Lines where the name ends in .jsonl.

    The array may be the value of the key ``of`` in an object, with short values before it.

    Elements that are no objects, and lines that are no JSON, are counted in ``tally``. Raises TrainingError for a
    file that cannot be read and for an array that is damaged, ends too early, or is not all there is in the file.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            elements = _lines(stream, tally, path) if path.suffix.lower() in LINES else _elements(stream, path, of)
            for where, element in elements:
                if isinstance(element, dict):
                    yield where, element
                else:
                    tally.add("not a JSON object", where)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Check the path; the file must be UTF-8.") from error


def _lines(stream: TextIO, tally: Tally, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, 1):
        where = f"{path.name} line {number}"
        if not line.strip():
            continue
        try:
            element = json.loads(line)
        except (ValueError, RecursionError):
            tally.add("unreadable line", where)
            continue
        yield where, element


def _elements(stream: TextIO, path: Path, of: str = "") -> Iterator[tuple[str, Any]]:
    decoder = json.JSONDecoder()
    text = stream.read(_CHUNK).lstrip(_BLANK)
    within = re.match(rf'\{{[^\[\]{{}}]*"{of}"\s*:\s*(?=\[)', text) if of else None
    if within:
        text = text[within.end() :]
    if not text.startswith("["):
        raise TrainingError(f"{path} is not a JSON list. Give the annotation file, or name it .jsonl if it is one.")
    number, place, ended = 0, 1, False
    while True:
        place = _skip(text, place, _BLANK + ",")
        if place < len(text) and text[place] == "]":
            if within:
                return
            rest = text[place + 1 :] or stream.read(_CHUNK)
            while rest and not rest.strip(_BLANK):
                rest = stream.read(_CHUNK)
            if rest:
                raise TrainingError(f"{path} goes on after the end of its list. Put all entries into one list.")
            return
        try:
            if place == len(text):
                raise ValueError("the list does not end")
            element, stop = decoder.raw_decode(text, place)
            complete = ended or text[stop : stop + 1] in _ENDS  # 0 may go on as 0.5
        except RecursionError as error:
            raise TrainingError(f"{path}: entry {number + 1} is nested too deeply. Download the file again.") from error
        except ValueError as error:
            if ended:
                message = f"{path} is damaged at entry {number + 1} or ends too early: {error}. Download it again."
                raise TrainingError(message) from error
            complete = False
        if complete:
            number += 1
            yield f"{path.name} entry {number}", element
            place = stop
        else:
            more = stream.read(max(_CHUNK, len(text) - place))  # doubling: an entry is scanned a few times at most
            ended = not more
            text, place = text[place:] + more, 0


def _skip(text: str, place: int, what: str) -> int:
    while place < len(text) and text[place] in what:
        place += 1
    return place
