"""How inputs of any size run on a GPU that likes few sizes: a ladder, padding, and lanes that overlap.

A *lane* is one execution context with a stream and buffers of its own. It works on one batch at a time and is given the
next while another lane still computes, so that copying overlaps computing. Everything here is about who works on what;
what a lane does is the vendor's (``plan_lane``), or a fake's in tests.

``Lanes`` is for models of which only the batch is free, ``OnDemand`` for those with other free sizes: there the same
sizes come again and again, as in the steps of a generation, and each is made ready when it is first met.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

import numpy as np

from .errors import BackendExecutionError, BackendWarning, DeviceMemoryError
from .signature import BATCH, Array, Arrays, Sizes, SizesKey, key_of

Outputs = dict[str, Array]

_KEPT = 4  # sizes that are ready at once in OnDemand: each holds an execution context, and memory


class Lane(Protocol):
    """One execution context. Used by one thread at a time."""

    def prepare(self, sizes: Sizes) -> None:
        """Make these ``sizes`` ready to run at full speed. Raises DeviceMemoryError, BackendExecutionError.

        What raises leaves nothing of these sizes behind.
        """

    def start(self, inputs: Arrays, sizes: Sizes) -> None:
        """Begin to run ``inputs``, whose rows are padded to the batch of ``sizes`` (prepared); does not wait."""

    def finish(self) -> Outputs:
        """Wait for what was started; the results of the rows that were given, in arrays of the caller's own."""

    def release(self, sizes: Sizes) -> None:
        """Free what ``prepare`` made for these sizes."""

    def close(self) -> None:
        """Free everything."""


class Lanes:
    """A bounded pool of lanes for batches of ``smallest`` (fewer images are padded) to ``capacity``.

    ``open_lane`` makes one lane of a capacity. Where the device's memory does not hold ``count`` of them, the capacity
    is halved, as often as it takes, in the end one lane must do, and a BackendWarning says so. ``run`` may be called
    from many threads. ``coarse`` is for lanes to which another size costs much.

    Raises DeviceMemoryError where not even the smallest batch fits, BackendExecutionError.
    """

    def __init__(
        self,
        open_lane: Callable[[int], Lane],
        capacity: int,
        smallest: int = 1,
        count: int = 2,
        *,
        coarse: bool = False,
    ) -> None:
        self.capacity, self._all = _as_many_as_fit(open_lane, capacity, smallest, count, coarse)
        self.ladder = ladder(self.capacity, smallest, coarse=coarse)
        self._free: queue.LifoQueue[Lane] = queue.LifoQueue()
        for lane in self._all:
            self._free.put(lane)
        self._closing = threading.Lock()

    def run(self, inputs: Arrays) -> Outputs:
        """Run inputs [B, ...], B at least 1; every output [B, ...] in the order of the rows.

        What is more than the capacity is cut into pieces, and a second lane takes part where one is free.
        """
        pieces = [
            {name: array[start : start + self.capacity] for name, array in inputs.items()}
            for start in range(0, rows(inputs), self.capacity)
        ]
        with self._borrowed(len(pieces)) as lanes:
            results = list(_overlapped(pieces, lanes, self._rung))
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def close(self) -> None:
        """Free all lanes, and let go of them: each holds the model. Nobody may be running."""
        with self._closing, ExitStack() as stack:  # which goes on where one fails
            self._free = queue.LifoQueue()
            while self._all:
                stack.callback(self._all.pop().close)

    def _rung(self, count: int) -> Sizes:
        return {BATCH: next(size for size in self.ladder if size >= count)}

    @contextmanager
    def _borrowed(self, wanted: int) -> Iterator[Sequence[Lane]]:
        """One lane, however long that takes, and up to ``wanted`` if they are free; waiting for more could deadlock."""
        lanes = [self._free.get()]
        try:
            while len(lanes) < wanted:
                try:
                    lanes.append(self._free.get_nowait())
                except queue.Empty:
                    break
            yield lanes
        finally:
            for lane in reversed(lanes):
                self._free.put(lane)


class OnDemand:
    """One lane that makes sizes ready when they are first asked for; of the last four they stay ready.

    ``typical`` sizes are made ready at once, or ``smallest`` where memory does not hold those: so what the lane cannot
    do at all shows when it is made. Memory that runs out later is taken from other sizes first. ``run`` may be called
    from many threads, which take turns.

    Raises what the lane's ``prepare`` raises, and closes it then.
    """

    def __init__(self, lane: Lane, typical: Sizes, smallest: Sizes) -> None:
        self._lane = lane
        self._ready: dict[SizesKey, Sizes] = {}
        self._turn = threading.Lock()
        try:
            with suppress(DeviceMemoryError):
                self._make_ready(typical)
            if not self._ready:
                self._make_ready(smallest)
        except BaseException:
            lane.close()
            raise

    def run(self, inputs: Arrays, sizes: Sizes) -> Outputs:
        """Run inputs whose free dimensions have these ``sizes``. Raises DeviceMemoryError, BackendExecutionError."""
        with self._turn:
            self._make_ready(sizes)
            self._lane.start(inputs, sizes)
            return self._lane.finish()

    def close(self) -> None:
        """Free the lane, and let go of it: it holds the model. Nobody may be running."""
        self._lane.close()
        del self._lane

    def _make_ready(self, sizes: Sizes) -> None:
        key = key_of(sizes)
        if self._ready.pop(key, None) is None and not self._fits_beside_others(sizes):
            self._release(0)
            self._lane.prepare(sizes)
        self._ready[key] = sizes  # the last one asked for is the last one to go

    def _fits_beside_others(self, sizes: Sizes) -> bool:
        """Make sizes ready where others are, and memory holds these too."""
        self._release(_KEPT - 1)
        if self._ready:
            with suppress(DeviceMemoryError):  # whose frames would hold memory while it is tried again
                self._lane.prepare(sizes)
                return True
        return False

    def _release(self, most: int) -> None:
        """Let sizes go, those asked for longest ago first, until there are ``most``."""
        while len(self._ready) > most:
            self._lane.release(self._ready.pop(next(iter(self._ready))))


def rows(inputs: Arrays) -> int:
    """How many rows the inputs have: the size of their first axis, which is the batch."""
    return len(next(iter(inputs.values())))


def ladder(capacity: int, smallest: int = 1, *, coarse: bool = False) -> tuple[int, ...]:
    """Batch sizes that are made ready: of 1, 2, 3, 4, 6, 8, 12, ... those within the limits, and the limits themselves.

    So no batch between them grows by more than half when it is padded. ``coarse`` takes 1, 4, 16, 64, ...
    """
    rungs = {smallest, capacity}
    power = 1
    while power < capacity:
        rungs |= {power} if coarse else {power, power + power // 2}
        power *= 4 if coarse else 2
    return tuple(sorted(size for size in rungs if smallest <= size <= capacity))


def _overlapped(pieces: Sequence[Arrays], lanes: Sequence[Lane], rung: Callable[[int], Sizes]) -> Iterator[Outputs]:
    """Results in order, each lane being given its next piece before the results of another are waited for.

    Whatever is raised, every lane that was started is waited for: it may still read and write its buffers.
    """
    working: deque[Lane] = deque()
    try:
        for number, piece in enumerate(pieces):
            if len(working) == len(lanes):
                yield working.popleft().finish()
            lane = lanes[number % len(lanes)]
            lane.start(piece, rung(rows(piece)))
            working.append(lane)
        while working:
            yield working.popleft().finish()
    finally:
        for lane in working:  # only after an error, which is the one to be told
            with suppress(BackendExecutionError):
                lane.finish()


def _as_many_as_fit(
    open_lane: Callable[[int], Lane], capacity: int, smallest: int, count: int, coarse: bool
) -> tuple[int, list[Lane]]:
    wanted = capacity
    reason = ""  # words only: the error's frames hold what did not fit
    while True:
        lanes: list[Lane] = []
        try:
            for _ in range(count):
                lanes.append(open_lane(capacity))
                # The largest tells soonest whether memory suffices.
                for batch in reversed(ladder(capacity, smallest, coarse=coarse)):
                    lanes[-1].prepare({BATCH: batch})
        except DeviceMemoryError as error:
            _close(lanes)
            if capacity == smallest and count == 1:
                raise
            reason, capacity, count = str(error), max(capacity // 2, smallest), 1 if capacity == smallest else count
            continue
        except BaseException:
            _close(lanes)
            raise
        if reason:
            warnings.warn(
                f"the GPU's memory holds batches of {capacity} instead of {wanted}. Scoring goes on with those; for"
                f" full speed free some memory, or build a plan for smaller batches. ({reason})",
                BackendWarning,
                stacklevel=2,
            )
        return capacity, lanes


def _close(lanes: Sequence[Lane]) -> None:
    with ExitStack() as stack:
        for lane in lanes:
            stack.callback(lane.close)
