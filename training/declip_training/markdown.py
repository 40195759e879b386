"""Tables of Markdown, of cells that are written in it and of texts that are to be shown as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SIGNS = re.compile(r"[\\|*`<\[]|(?<!\w)_|_(?!\w)")  # of Markdown; an underscore within a word is none


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table of cells that are Markdown, a line each for the headings, the rule below them and the rows."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain_grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table of ``plain`` cells."""
    return grid([plain(text) for text in headings], ([plain(text) for text in row] for row in rows))


def plain(text: str) -> str:
    """One line that Markdown shows as it is: names and messages of others may hold its signs."""
    return _SIGNS.sub(r"\\\g<0>", " ".join(text.split()))
