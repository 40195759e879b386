"""What the benchmarks share: peers that take turns, bars, and result files that say what they were measured on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from declip_runtime.benchmark import Row, Timing, Workload, to_csv, to_markdown
from declip_runtime.engine_file import EngineFile
from declip_runtime.machine import describe_machine

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "open_clip_torch", "timm", "onnx")

# Thread pools spin for a moment after their last task; the next peer is not to share the CPU with that.
_PAUSE = 0.1


def interleaved(
    peers: Mapping[str, Workload], *, seconds: float, rounds: int, lead_in: bool = True
) -> dict[str, Timing]:
    """Time peers that take turns, so that whatever slows a shared machine down for a while slows all of them.

    Each peer gets about ``seconds`` altogether and at least one call a round; its Timing has one value a round. With
    ``lead_in`` every turn begins with a call that does not count, because the peer before has left its data in the
    caches; calls of many seconds do not need it.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, work in peers.items():
            time.sleep(_PAUSE)
            if lead_in:
                work()
            calls, start = 0, time.perf_counter()
            while not calls or time.perf_counter() - start < seconds / rounds:
                work()
                calls += 1
            times[name].append((time.perf_counter() - start) / calls)
    return {name: Timing(tuple(t)) for name, t in times.items()}


def times_as_fast(ours: Timing, other: Timing) -> float:
    """How many times as fast ``ours`` is: median over the rounds, each at the speed that the machine had just then."""
    return float(np.median(np.divide(other.seconds, ours.seconds)))


def engine_column(engine: EngineFile | None) -> Row:
    """Which engine a row was measured with, as a column: the first eight digits of its id, nothing for None."""
    return {"engine": "" if engine is None else engine.id[:8]}


@dataclass(frozen=True)
class Bar:
    """What was promised and what was measured; ``at_most`` for times, bytes and drift."""

    what: str
    wanted: float
    measured: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted

    def row(self) -> Row:
        """One line of the table of bars."""
        sign = "at most" if self.at_most else "at least"
        verdict = "not measured" if math.isnan(self.measured) else "met" if self.met else "MISSED"
        return {"bar": self.what, "wanted": f"{sign} {self.wanted:g}", "measured": f"{self.measured:.3g}", "": verdict}


class Others:
    """How much of the machine other processes took since this was made, in the pauses between peers too."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def column(self) -> Row:
        """Percent of all CPUs, as a column of every row measured meanwhile."""
        spent = (_busy() - self._busy) - (_own() - self._own)
        available = (time.perf_counter() - self._start) * (os.cpu_count() or 1)
        return {"others %": round(max(0.0, 100 * spent / available), 1)}


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def save(name: str, title: str, rows: Sequence[Row], bars: Sequence[Bar]) -> None:
    """Print the bars and write ``results/NAME.csv`` and ``.md``: every row with machine, versions, date and commit."""
    machine = describe_machine(*PACKAGES)
    full = [{**row, **machine} for row in rows]
    verdicts = to_markdown([bar.row() for bar in bars]) if bars else ""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.csv").write_text(to_csv(full), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"# {title}\n\n{verdicts}\n{to_markdown(full)}", encoding="utf-8")
    print(to_markdown(rows), verdicts, sep="\n")
