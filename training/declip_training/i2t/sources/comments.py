"""AVA-Comments in each of the forms that they are published in; the picture of an image is ``ID.jpg``.

DPC2022's folder has one ``ID.json`` an image, read from ``raw_comments``; where a file lacks them, from
``clean_comments`` or the sentences of ``score_comments`` (PengZai/ARIC, "Dataset format"). The two files of "Aesthetic
Image Captioning" (V-Sense/Aesthetic-Image-Captioning-ICCVW-2019) are ``AVA_Comments_Full.txt``, a line an image with
number, ID and comments between ``#``, and ``CLEAN_AVA_FULL_COMMENTS.json``, an object whose ``images`` have
``sentences``, read from their ``raw``. Each comment is a text of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError
from declip_training.i2t.tally import Tally

from .json_stream import json_objects

_FIELDS = ("raw_comments", "comments", "clean_comments", "score_comments")


def read_comments(path: Path, tally: Tally) -> Iterator[tuple[str, str, str]]:
    """Yield (where, image as ``ID.jpg``, comment). What is unreadable or holds no comments is counted."""
    if path.is_dir():
        yield from _folder(path, tally)
    elif path.suffix.lower() == ".txt":
        yield from _lines(path, tally)
    else:
        yield from _images(path, tally)


def _folder(path: Path, tally: Tally) -> Iterator[tuple[str, str, str]]:
    names = sorted(entry.name for entry in os.scandir(path) if entry.name.endswith(".json"))
    if not names:
        raise TrainingError(f"{path} holds no .json files. Give the folder with one JSON file an image.")
    for name in names:
        try:
            content = json.loads((path / name).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            tally.add("unreadable file", name)
            continue
        comments = _comments(content)
        if not comments:
            tally.add("file without comments", name)
        for comment in comments:
            if comment is None:
                tally.add("comment that is no text", name)
            else:
                yield name, f"{name.removesuffix('.json')}.jpg", comment


def _lines(path: Path, tally: Tally) -> Iterator[tuple[str, str, str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            for number, line in enumerate(stream, 1):
                where = f"{path.name} line {number}"
                _, identity, *comments = [*(part.strip() for part in line.split("#")), ""]
                if not identity.isdecimal():
                    tally.add("line without an image's number", where)
                elif not any(comments):
                    tally.add("image without comments", where)
                else:
                    yield from ((where, f"{identity}.jpg", comment) for comment in comments if comment)
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}. Check the path.") from error


def _images(path: Path, tally: Tally) -> Iterator[tuple[str, str, str]]:
    if path.suffix.lower() != ".json":
        raise TrainingError(
            f"{path} is none of AVA's files of comments. Give DPC2022's folder, a .txt or a .json file."
        )
    for where, image in json_objects(path, tally, of="images"):
        name, sentences = image.get("filename"), image.get("sentences")
        raw = [one.get("raw") for one in sentences if isinstance(one, dict)] if isinstance(sentences, list) else []
        comments = [one.strip() for one in raw if isinstance(one, str) and one.strip()]
        if not isinstance(name, str) or not name.strip():
            tally.add("entry without an image", where)
        elif not comments:
            tally.add("image without comments", where)
        else:
            yield from ((where, name.strip(), comment) for comment in comments)


def _comments(content: Any) -> list[str | None]:
    """The comments of the first field that holds any; None for one that is no text."""
    for field in _FIELDS if isinstance(content, dict) else ():
        found = content.get(field)
        comments = [_text(one) for one in found] if isinstance(found, list) else []
        if any(comment is not None for comment in comments):
            return comments
    return []


def _text(comment: Any) -> str | None:
    """A comment is a string, or an object that holds one, as the sentences of ``score_comments`` do twice over."""
    while isinstance(comment, dict):
        comment = comment.get("comment")
    return comment.strip() if isinstance(comment, str) else None
