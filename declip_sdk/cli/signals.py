"""Ctrl-C and SIGTERM: they end us without a traceback from the first moment on, and save what can be saved.

While we start there is nothing to save, and libraries that are being imported do not stand an exception: the process
leaves at once. As soon as a verb works, both arrive as exceptions of the kind of KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM. Whatever stops for Ctrl-C stops for it; only the exit code differs."""


def leave_at_once() -> None:
    """From now on a signal ends the process, which is how ``declip`` starts. One that is ignored stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def raise_exceptions() -> None:
    """From now on, where ``leave_at_once`` was called before, a signal raises KeyboardInterrupt or Terminated."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _leave:
            signal.signal(number, _raise)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, as a shell would say it."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def word(interrupt: KeyboardInterrupt) -> str:
    """What happened, in a word."""
    return "terminated" if isinstance(interrupt, Terminated) else "interrupted"


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    end = "interrupted" if number == signal.SIGINT else "terminated"
    try:
        if sys.stderr is not None:
            os.write(sys.stderr.fileno(), f"declip: {end}\n".encode())
    finally:
        os._exit(128 + number)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
