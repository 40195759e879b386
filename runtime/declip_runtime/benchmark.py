"""How fast an engine is on this machine, as rows that can be compared with those of another machine."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import get_args

import numpy as np

from . import backends
from .backends.base import Backend, Precision
from .cache import Cache
from .engine_file import EngineFile
from .errors import BackendUnavailableError, DeclipError, PrecisionError
from .options import Decode
from .scorer import Scorer

Row = dict[str, str | int | float]
Workload = Callable[[], object]
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of each measured call."""

    seconds: tuple[float, ...]

    def columns(self, images: int) -> Row:
        """For calls that do so many images: images a second (median, p10, p90 over calls) and milliseconds a call."""
        rates = images / np.asarray(self.seconds)
        low, median, high = (_rounded(float(v)) for v in np.quantile(rates, (0.1, 0.5, 0.9)))
        milliseconds = _rounded(1000 * float(np.median(self.seconds)))
        return {"images/s": median, "p10": low, "p90": high, "ms/call": milliseconds}


def measure(work: Workload, seconds: float) -> Timing:
    """Repeat ``work`` for about ``seconds``, at least once."""
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return Timing(tuple(times))


def open_backends(
    engine: EngineFile, threads: int | None = None, tell: Tell = lambda _reason: None
) -> Iterator[Backend]:
    """Every backend that runs ``engine`` here, at every precision that both have; each closed when the next is due.

    ``tell`` hears why one that is installed is left out. Nothing is taken from the cache or put into it, which is for
    what the user scores with; but for the plans of TensorRT, that would be minutes for each precision each time. Raises
    BackendUnavailableError where there is none.
    """
    reasons = {name: reason for name, reason in backends.available().items() if name != "fake"}
    if None not in reasons.values():
        raise BackendUnavailableError(" ".join(filter(None, reasons.values())))
    told: dict[str, None] = {}
    opened = False
    for name in (name for name, reason in reasons.items() if reason is None):
        cache = Cache() if name == "tensorrt" else None
        for precision in get_args(Precision):
            try:
                backend = backends.choose(engine, name, precision=precision, threads=threads, cache=cache)
            except PrecisionError:
                continue
            except BackendUnavailableError as error:  # the lean runtime of TensorRT without a plan that fits
                if str(error) not in told:
                    tell(f"left out {name} in {precision}: {error}")
                told[str(error)] = None
                continue
            opened = True
            with closing(backend):
                yield backend
    if not opened:
        raise BackendUnavailableError(" ".join([*filter(None, reasons.values()), *told]))


def model_workload(backend: Backend, size: int, batch: int) -> Workload:
    """One call runs the model on ``batch`` random pictures; warmed up, because the first run of a shape prepares it."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    backend.run(images)
    return lambda: backend.run(images)


def model_rows(
    engine: EngineFile,
    batches: Sequence[int],
    *,
    seconds: float,
    threads: int | None = None,
    tell: Tell = lambda _reason: None,
) -> Iterator[Row]:
    """Speed of the model alone: a row for every backend, precision and batch size; ``tell`` as in ``open_backends``."""
    for backend in open_backends(engine, threads, tell):
        for batch in batches:
            timing = measure(model_workload(backend, engine.scorer.preprocess.size, batch), seconds)
            who: Row = {"what": "model only", "backend": backend.name, "precision": backend.precision, "batch": batch}
            yield {**who, **timing.columns(batch)}


def scorable(
    engine: EngineFile, photos: Sequence[str], *, threads: int | None = None
) -> tuple[list[str], list[DeclipError]]:
    """The photos that have a score, and for each of the others the reason: failing is fast, and no measurement."""
    with Scorer(engine.path, threads=threads) as scorer:
        errors = [score.error for score in scorer.stream(photos)]
    good = [photo for photo, error in zip(photos, errors, strict=True) if error is None]
    return good, [error for error in errors if error is not None]


def file_rows(
    engine: EngineFile, photos: Sequence[str], *, seconds: float, threads: int | None = None
) -> Iterator[Row]:
    """Speed from files to scores with the backend that a Scorer takes: decoding fast and exact, one and five views.

    Raises ImageError for one that cannot be scored; ``scorable`` finds them beforehand.
    """
    settings: tuple[tuple[Decode, int], ...] = (("fast", 1), ("exact", 1), ("exact", 5))
    for decode, views in settings:
        with Scorer(engine.path, decode=decode, views=views, threads=threads) as scorer:
            scorer.warmup()
            timing = measure(lambda: scorer.score(photos), seconds)
            what = f"{len(photos)} file{'s' * (len(photos) != 1)}, {decode} decoding, views={views}"
            who: Row = {"what": what, "backend": scorer.backend, "precision": scorer.precision}
            yield {**who, "batch": scorer.batch_size, **timing.columns(len(photos))}


def to_csv(rows: Sequence[Row]) -> str:
    """Header and one line a row; what a row lacks is empty."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    names = _columns(rows)
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _rounded(value: float) -> int | float:
    """Three digits that mean something."""
    return round(value) if value >= 100 else round(value, 1 if value >= 10 else 2)
