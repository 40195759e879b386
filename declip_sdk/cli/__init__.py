"""The command line: one file a verb, imported when called.

Exit codes of every verb: 0 all done (``score``: all images scored), 1 some images failed, 2 wrong use or an engine,
backend or file that cannot be used, 130 interrupted by Ctrl-C, 143 terminated by SIGTERM, 141 the reader of our
output went away (as of a program ended by SIGPIPE).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import signals


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``declip``: run one verb and leave the process with its exit code."""
    signals.leave_at_once()  # before anything large is imported
    code = run(sys.argv[1:] if arguments is None else arguments)
    signals.leave_at_once()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return the exit code; errors and warnings become one line each on standard error."""
    from .invoke import invoke

    return invoke(arguments)
