"""Threads that open and prepare pictures ahead of the model: bounded, in order, gone when the consumer stops.

One thread takes sources from the iterable, so that a source that waits (a camera, a pipe) does not hold back the
results of those before it; the others decode. Pillow releases the GIL while it decodes and resizes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, UsageError

# How long the end of a loader waits for an iterable that is just then asked for its next source, in seconds.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Prepared:
    """One source and what became of it: ``pixels`` uint8 [views, size, size, 3], or the ``error`` in their place."""

    index: int
    source: Any
    pixels: NDArray[np.uint8] | None
    error: ImageError | UsageError | None


class Loader:
    """Applies ``prepare`` to sources in ``threads`` threads. Holds no thread between calls, so forking is harmless."""

    def __init__(self, prepare: Callable[[Any], NDArray[np.uint8]], *, threads: int, ahead: int) -> None:
        if threads < 1 or ahead < 1:
            raise UsageError(f"threads={threads} and ahead={ahead} must both be at least 1.")
        self._prepare = prepare
        self._threads = threads
        self._ahead = ahead

    def __call__(
        self, sources: Iterable[Any], *, patience: float | None = None
    ) -> Generator[Prepared | None, None, None]:
        """Yield one ``Prepared`` for each source, in order; never take more than ``ahead`` sources beyond those.

        With ``patience`` a None comes first wherever the next one takes longer than so many seconds.

        ImageError and UsageError of ``prepare``, which is given nothing but the source, are recorded; every other
        exception is raised in its turn, and one of the iterable itself after the results of all sources before it.
        The iterable runs in another thread.

        Whenever the generator ends, by close(), an exception or Ctrl-C, queued work is dropped, and it waits only for
        the pictures being decoded. An iterable that waits for its next source cannot be interrupted by anybody: its
        thread, a daemon, ends when it gets one.
        """
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="declip-loader")
        reader = _Reader(sources, lambda index, source: pool.submit(self._prepare_one, index, source), self._ahead)
        reader.start()
        try:
            while True:
                if patience is not None and not reader.ready(patience):
                    yield None
                turn = reader.turn()
                if turn is None:
                    return
                yield turn.result()
        finally:
            reader.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            reader.join(_PATIENCE)

    def _prepare_one(self, index: int, source: Any) -> Prepared:
        try:
            return Prepared(index, source, self._prepare(source), None)
        except (ImageError, UsageError) as error:
            _forget_frames(error)
            return Prepared(index, source, None, error)


class _Reader(threading.Thread):
    """Takes sources and submits them, as far ahead of ``turn`` as allowed."""

    def __init__(self, sources: Iterable[Any], submit: Callable[[int, Any], Future[Prepared]], ahead: int) -> None:
        super().__init__(name="declip-reader", daemon=True)
        self._sources = sources
        self._submit = submit
        self._turns: SimpleQueue[Future[Prepared] | BaseException | None] = SimpleQueue()
        self._peeked: list[Future[Prepared] | BaseException | None] = []
        self._slots = threading.Semaphore(ahead - 1)  # one more is in hand without a slot
        self._stopped = False
        self._submitting = threading.Lock()

    def run(self) -> None:
        try:
            for index, source in enumerate(self._sources):
                with self._submitting:
                    if self._stopped:
                        return
                    self._turns.put(self._submit(index, source))
                self._slots.acquire()
                if self._stopped:
                    return
        except BaseException as error:  # noqa: BLE001 - whatever the caller's iterable raises is the caller's to see
            self._turns.put(error)
        else:
            self._turns.put(None)

    def ready(self, seconds: float) -> bool:
        """Whether ``turn`` and its result will be there without waiting, at the latest after ``seconds``."""
        until = time.monotonic() + seconds
        try:
            self._peeked.append(self._turns.get(timeout=seconds))
        except Empty:
            return False
        turn = self._peeked[0]
        return not isinstance(turn, Future) or bool(wait([turn], max(0.0, until - time.monotonic())).done)

    def turn(self) -> Future[Prepared] | None:
        """Return the next source's future, None after the last; raise what the iterable raised."""
        turn = self._peeked.pop() if self._peeked else self._turns.get()
        if isinstance(turn, BaseException):
            raise turn
        self._slots.release()
        return turn

    def stop(self) -> None:
        """Submit nothing more; returns at once."""
        with self._submitting:
            self._stopped = True
        self._slots.release()


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks: their frames hold the file's bytes, and a recorded error may be kept for hours."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
