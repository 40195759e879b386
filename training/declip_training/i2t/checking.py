"""Is an I&2T table what it says: ids, texts, decoupling, and images that open and match their hashes?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from declip_runtime.errors import ImageError
from declip_runtime.images import open_image

from .candidates import hash_of
from .decoupling import coupling
from .language import foreign
from .pictures import file_sha256
from .records import REQUIRED, image_path, read_rows, required_text
from .reply import Judge
from .tally import Tally
from .vocabulary import words

_CHUNK = 512


def check_table(
    path: Path, judge: Judge, *, images: bool = True, advance: Callable[[], None] = lambda: None
) -> tuple[int, Tally]:
    """The number of rows of a table, and every problem found, by kind, with the first examples.

    ``images`` False leaves out opening and hashing the images, which takes most of the time. Raises TrainingError for a
    file that cannot be read at all.
    """
    tally = Tally()
    seen: dict[str, int] = {}
    rows = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in _chunks(enumerate(read_rows(path), 1)):
            found = pool.map(lambda row: _image(path, row[1]), chunk) if images else iter(())
            for number, row in chunk:
                rows += 1
                name = required_text(row, "id")
                where = f"row {number} ({name})" if name else f"row {number}"
                for problem in _texts(row, judge):
                    tally.add(problem, where)
                if name and seen.setdefault(name, number) != number:
                    tally.add("repeated id", where)
                if images and (unseen := next(found)):
                    tally.add(unseen, f"{where}: {row.get('image')}")
                advance()
    if not rows:
        tally.add("no rows", path.name)
    return rows, tally


def _chunks(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[list[tuple[int, Mapping[str, Any]]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _texts(row: Mapping[str, Any], judge: Judge) -> Iterator[str]:
    empty = [name for name in REQUIRED if not required_text(row, name)]
    yield from (f"{name} is empty or no text" for name in empty)
    source, digest = row.get("source_text"), row.get("text_sha256")
    if isinstance(source, str) and digest and hash_of(source) != digest:
        yield "source text does not match its hash"
    if {"perceptual", "semantic"} & set(empty):
        return
    perceptual, semantic = row["perceptual"], row["semantic"]
    for key, text in (("perceptual", perceptual), ("semantic", semantic)):
        if len(words(text)) > judge.max_words:
            yield f"{key} text has more than {judge.max_words} words"
        if foreign(text, judge.vocabularies):
            yield f"{key} text is not English"
    if coupling(perceptual, semantic, judge.vocabularies, judge.limits):
        yield "texts are not decoupled"


def _image(table: Path, row: Mapping[str, Any]) -> str | None:
    image, digest = required_text(row, "image"), row.get("image_sha256")
    if not image:
        return None  # told already
    place = image_path(table, image)
    try:
        open_image(place, minimum_side=64)
        if digest and file_sha256(place) != digest:
            return "image does not match its hash"
    except ImageError:
        return "image cannot be opened"
    return None
