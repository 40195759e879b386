"""Photos with opinion scores that something is fitted to: of a public data set, or of a table of one's own."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError

from .evaluation.datasets import ALL, DATASETS, TEST, collect_parts
from .i2t.records import read_rows

LEAST = 10


@dataclass(frozen=True)
class Opinions:
    """``names`` and ``paths`` of N photos, ``mos`` float32 [N] in 0..1 (higher is better), and what they were in.

    ``mos`` is the published score scaled so that the least is 0 and the largest 1; ``title`` is for people. ``missing``
    photos are in the data set's table and not on disk.
    """

    title: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    mos: npt.NDArray[np.float32]
    missing: int = 0

    def held_out(self, share: float) -> npt.NDArray[np.bool_]:
        """Bool [N]: the ``share`` of photos that choices are made by, decided by a hash of each name."""
        digests = [hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in self.names]
        return np.array([int.from_bytes(d[:8], "big") < share * 2**64 for d in digests])

    def without(self, places: Sequence[int]) -> Opinions:
        """The others; scores stay as they were scaled."""
        keep = np.setdiff1d(np.arange(len(self.paths)), places)
        names, paths = [self.names[i] for i in keep], [self.paths[i] for i in keep]
        return replace(self, names=tuple(names), paths=tuple(paths), mos=self.mos[keep])


def read_data_set(name: str, folder: Path, *, allow_missing: bool = False) -> Opinions:
    """Everything of a public data set that is not its official test split; all of it where there is no such split.

    Photos that are not on disk are refused, or counted and left out with ``allow_missing``. Raises TrainingError for an
    unknown name and for what ``collect_parts`` refuses.
    """
    if name not in DATASETS:
        raise TrainingError(f"there is no data set {name!r}. There are: {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    parts = [part for part in dataset.splits if part != TEST] or [ALL]
    found = collect_parts(dataset, folder, parts, allow_missing=allow_missing)
    title = dataset.title + (f", official {' and '.join(parts)}" if dataset.splits else "")
    opinions = _scaled(title, [(p.name, p.path, p.score) for p in found.photos])
    return replace(opinions, missing=len(found.missing))


def read_table(table: Path) -> Opinions:
    """A table (.csv, .jsonl, .parquet) with the columns ``image`` (relative to the table) and ``score``.

    Raises TrainingError for a missing column, an image twice, and a score that is no finite number, naming the row.
    """
    seen: dict[str, int] = {}
    found = []
    for number, row in enumerate(read_rows(table), 1):
        if missing := {"image", "score"} - row.keys():
            raise TrainingError(f"{table} has no column {min(missing)!r}. It needs image and score.")
        image, score = str(row["image"] or ""), _number(row["score"])
        if not image or score is None:
            raise TrainingError(
                f"row {number} of {table} has the image {image!r} and the score {row['score']!r}. Give a path and a "
                "finite number, or remove the row."
            )
        first = seen.setdefault(os.path.normpath(image), number)
        if first != number:
            raise TrainingError(f"rows {first} and {number} of {table} name the same image {image!r}. Keep one.")
        found.append((image, table.parent / image, score))
    return _scaled(str(table), found)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _scaled(title: str, found: Sequence[tuple[str, Path, float]]) -> Opinions:
    if len(found) < LEAST:
        raise TrainingError(f"{title} has {len(found)} rated photos. {LEAST} are the least that can be learned from.")
    scores = np.array([score for _, _, score in found])
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        raise TrainingError(f"all photos of {title} have the score {low:g}. Give opinions that differ.")
    mos = ((scores - low) / (high - low)).astype(np.float32)
    return Opinions(title, tuple(name for name, _, _ in found), tuple(path for _, path, _ in found), mos)
