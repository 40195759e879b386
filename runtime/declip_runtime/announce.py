"""Saying on standard error that something takes minutes, and how far it is: it must never look dead."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

_EVERY = 10.0


class Announcer:
    """A context manager around long work; called with a phase and a share 0..1, which it tells every ten seconds.

    It also speaks while the work says nothing for long.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._phase, self._share = "", 0.0
        self._done = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="declip-announcer", daemon=True)
        self._began = 0.0

    def __enter__(self) -> Announcer:
        self._began = time.monotonic()
        _say(self._what)
        self._ticking.start()
        return self

    def __call__(self, phase: str, share: float) -> None:
        """Remember it until it is time to say it."""
        self._phase, self._share = phase, share

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._ticking.join()
        _say(f"{'done' if kind is None else 'stopped'} after {self._seconds:.0f} s")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _tick(self) -> None:
        while not self._done.wait(_EVERY):
            _say(f"{self._share:4.0%} after {self._seconds:.0f} s" + f" ({self._phase})" * bool(self._phase))


def _say(text: str) -> None:
    """Nothing may go wrong with the work because nobody listens: standard error may be closed, or not exist."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"declip: {line}\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        pass
