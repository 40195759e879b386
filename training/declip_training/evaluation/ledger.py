"""The record of every look at BIQ2021's Test: a CSV that each evaluation appends a row to.

A test split that is looked at often and off the record turns into one more split to choose by. Numbers of the
columns are defined by ``declip_training.evaluation.biq2021``; ``whole_test_row`` leaves those empty that it has not.
"""

from __future__ import annotations

import csv
import datetime as dt
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import TrainingError, UsageError
from declip_runtime.machine import commit

from .datasets import TEST, Collection
from .metrics import MINIMUM, agreement
from .scoring import Scored

FILE_NAME = "biq2021_test.csv"
COLUMNS = (
    "date", "commit", "engine", "engine_id", "backend", "precision", "score",
    "ss01", "ss02", "ss03", "mean", "pooled_unique", "n_unique", "pooled", "plcc", "n",
    "ladder_blur", "ladder_noise", "ladder_jpeg", "ladder_underexposure", "ladder_overexposure", "ladder_mean",
    "n_ladder_photos", "note",
)  # fmt: skip
ID_DIGITS = 16


def checkout_ledger() -> Path | None:
    """The ledger of the checkout that this code lies in; None where it was installed."""
    path = Path(__file__).parents[3] / "benchmarks" / "results" / FILE_NAME
    return path if path.is_file() else None


def require_ledger(ledger: Path) -> None:
    """Raise UsageError where no row can be appended to ``ledger``, or is none: worth knowing before hours of work."""
    if ledger.is_dir() or not os.access(ledger if ledger.exists() else ledger.parent, os.W_OK):
        raise UsageError(f"the ledger {ledger} cannot be written. Name another file with --ledger.")
    if ledger.is_file():
        try:
            with ledger.open(newline="", encoding="utf-8") as stream:
                header = next(csv.reader(stream), [])
                stream.read()
        except (UnicodeDecodeError, csv.Error):
            header = ["no table"]
        if tuple(header) not in ((), COLUMNS):
            raise UsageError(
                f"{ledger} is no ledger: its columns are not {', '.join(COLUMNS[:4])}, ... in UTF-8. Name another file "
                "with --ledger."
            )


def is_recorded(ledger: Path, row: Mapping[str, str], note: str) -> bool:
    """Whether ``ledger`` has this very row, whenever it was appended. False where there is no such file."""
    if not ledger.is_file():
        return False
    wanted = {**row, "note": note}.items()
    with ledger.open(newline="", encoding="utf-8") as stream:
        return any(all(old.get(k) == v for k, v in wanted) for old in csv.DictReader(stream))


def append_ledger(ledger: Path, row: Mapping[str, str], note: str = "") -> None:
    """Append ``row`` with date, commit and ``note``; the header is written once. Columns that ``row`` lacks are empty.

    Raises TrainingError where it cannot be written.
    """
    date = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M")
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        before = ledger.read_bytes()[-1:] if ledger.is_file() else b""
        with ledger.open("a", newline="", encoding="utf-8") as stream:
            if before not in (b"", b"\n"):  # an editor took the end of the last line away
                stream.write("\n")
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            if not before:
                writer.writeheader()
            writer.writerow({"date": date, "commit": commit() or "unknown", **row, "note": note})
    except OSError as error:
        raise TrainingError(
            f"cannot write the ledger {ledger}: {error.strerror or error}. Name another file with --ledger."
        ) from error


def holds_test(collection: Collection) -> bool:
    """Whether photos of BIQ2021's Test are among those of ``collection``."""
    return collection.dataset.name == "biq2021" and any(photo.split == TEST for photo in collection.photos)


def whole_test_row(collection: Collection, scored: Scored, engine: EngineFile, score: str) -> dict[str, str] | None:
    """The row of an evaluation of all of Test that could be scored, near-duplicates of Train included.

    None where that shows nothing: other data, fewer than 3 photos.
    """
    if not holds_test(collection):
        return None
    chosen = scored.good & np.array([photo.split == TEST for photo in collection.photos])
    if chosen.sum() < MINIMUM:
        return None
    predicted = scored.values[chosen, scored.names.index(score)]
    found = agreement(predicted, np.array([photo.score for photo in collection.photos])[chosen], draws=0)
    return {
        "engine": engine.manifest.name,
        "engine_id": engine.id[:ID_DIGITS],
        "backend": str(scored.identity["backend"]),
        "precision": str(scored.identity["precision"]),
        "score": score,
        "pooled": f"{found.srcc:.4f}",
        "plcc": f"{found.plcc:.4f}",
        "n": str(found.n),
    }
