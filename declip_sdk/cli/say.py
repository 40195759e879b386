"""One line on standard error, whatever became of standard error."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click

from .text import visible


def say(message: str) -> None:
    """Write ``declip: message`` as one line; where nobody can be told, nobody is."""
    try:
        click.echo(f"declip: {visible(' '.join(message.splitlines()))}", err=True)
    except OSError:
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Let what is still buffered go nowhere: written again when the interpreter ends, it would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
