"""Saying on standard error that something takes minutes, and how far it is: it must never look dead."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

_EVERY = 10.0


class Announcer:
    """A context manager around long work; called with a phase and a share 0..1, it tells of it every ten seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._began = self._told = 0.0

    def __enter__(self) -> Announcer:
        self._began = self._told = time.monotonic()
        _say(self._what)
        return self

    def __call__(self, phase: str, share: float) -> None:
        """Say it, unless something was said just before."""
        now = time.monotonic()
        with self._lock:
            if now - self._told < _EVERY:
                return
            self._told = now
        _say(f"{share:4.0%} after {now - self._began:.0f} s ({phase})")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = time.monotonic() - self._began
        _say(f"done after {took:.0f} s" if kind is None else f"stopped after {took:.0f} s")


def _say(text: str) -> None:
    if sys.stderr is not None:  # a program without a console has none
        sys.stderr.write(f"declip: {text}\n")
        sys.stderr.flush()
