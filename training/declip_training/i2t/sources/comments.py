"""AVA-Comments as DPC2022 publishes them: a folder with one ``ID.json`` an image, whose picture is ``ID.jpg``.

Read from ``raw_comments``; where a file lacks them, from ``clean_comments`` or the sentences of ``score_comments``
(PengZai/ARIC, "Dataset format"). Each comment is a text of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError
from declip_training.i2t.tally import Tally

_FIELDS = ("raw_comments", "comments", "clean_comments", "score_comments")


def read_comments(path: Path, tally: Tally) -> Iterator[tuple[str, str, str]]:
    """Yield (where, image as ``ID.jpg``, comment). Files that are unreadable or hold no comments are counted."""
    if not path.is_dir():
        raise TrainingError(f"{path} is no folder. Give the folder with one JSON file an image.")
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
