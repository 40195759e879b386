"""LLaVA-style conversations, the form of AesMMIT (AesExpert), Q-Instruct and ShareGPT4V.

A list of entries ``{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]}``.
The answers of one entry are one text: in Q-Instruct and AesMMIT they are human feedback (AesMMIT's refined by a model),
in ShareGPT4V they are captions of a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from declip_training.i2t.tally import Tally

from .json_stream import json_objects

_ANSWERS = ("gpt", "assistant")


def read_conversations(path: Path, tally: Tally) -> Iterator[tuple[str, str, str]]:
    """Yield (where, image as the file names it, answers). Entries without image or answers are counted in ``tally``."""
    for where, entry in json_objects(path, tally):
        image, text = entry.get("image"), _answers(entry.get("conversations"))
        if isinstance(image, list):
            tally.add("entry with a list of images", where)
        elif not isinstance(image, str) or not image.strip():
            tally.add("entry without an image", where)
        elif text is None:
            tally.add("entry without conversations", where)
        else:
            yield where, image, text


def _answers(conversations: Any) -> str | None:
    """The answers, a line each; None where there is no list of turns."""
    if not isinstance(conversations, list):
        return None
    turns = [t for t in conversations if isinstance(t, dict) and t.get("from") in _ANSWERS]
    values = [t["value"] for t in turns if isinstance(t.get("value"), str)]
    return "\n".join(value.replace("<image>", "").strip() for value in values).strip()
