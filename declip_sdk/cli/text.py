"""Text for people: file names made safe to print, plural, shortening."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len

_JOINER = "\u200d"  # holds composed emoji together


def visible(text: str) -> str:
    """The text with whatever could break a line or steer a terminal written as an escape.

    A byte of a file name that is not UTF-8 comes out as ``\\xNN``, a newline as ``\\n``.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if character.isprintable() or character == _JOINER or unicodedata.category(character) == "Zs":
        return character
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for an undecodable byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shorten(text: str, width: int, ellipsis: str = "…") -> str:
    """At most ``width`` terminal cells: the start gives way to an ellipsis, the end of a path says more."""
    if cell_len(text) <= width:
        return text
    tail = text
    while tail and cell_len(tail) > width - len(ellipsis):
        tail = tail[1:]
    return ellipsis[:width] + tail


def count(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
