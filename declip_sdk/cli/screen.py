"""Drawing with rich: in colour and as wide as the terminal, or plain and as wide as it takes for a file or pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console, RenderableType

from .output import Output

_PLAIN_WIDTH = 250


def draw(stream: Output, build: Callable[[Console], RenderableType]) -> None:
    """Draw what ``build`` makes for the console that ``stream`` leads to.

    A terminal gets its own encoding, everything else UTF-8 without colours and trailing blanks.
    """
    encoding = sys.stdout.encoding if stream.isatty() else "utf-8"
    console = Console() if stream.isatty() else Console(width=_PLAIN_WIDTH, no_color=True, force_terminal=False)
    with console.capture() as drawn:
        console.print(build(console))
    text = drawn.get()
    if not stream.isatty():
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    stream.write(text.encode(encoding, "backslashreplace"))
    stream.flush()
