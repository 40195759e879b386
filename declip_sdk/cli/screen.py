"""Drawing with rich: in colour and as wide as the terminal, or plain and as wide as it takes for a file or pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from rich.console import Console, RenderableType

from .output import Output
from .text import visible

_PLAIN_WIDTH = 250


def draw(stream: Output, build: Callable[[Console], RenderableType]) -> None:
    """Draw what ``build`` makes for the console that ``stream`` leads to.

    A terminal gets its own encoding, everything else UTF-8 without colours and trailing blanks.
    """
    encoding = sys.stdout.encoding if stream.isatty() else "utf-8"
    plain = Console(file=io.StringIO(), width=_PLAIN_WIDTH, no_color=True, force_terminal=False)
    console = Console() if stream.isatty() else plain
    with console.capture() as drawn:
        console.print(build(console))
    text = drawn.get()
    if not stream.isatty():
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    stream.write(text.encode(encoding, "backslashreplace"))
    stream.flush()


def printable(text: str, console: Console) -> str:
    """``visible`` text with what the console's encoding lacks escaped too, now, while widths can still be computed."""
    return visible(text).encode(console.encoding, "backslashreplace").decode(console.encoding)


def ellipsis(console: Console) -> str:
    """What stands for text that was cut off."""
    return "..." if console.options.ascii_only else "…"


def separator(console: Console) -> str:
    """What stands between facts on one line."""
    return " | " if console.options.ascii_only else " · "
