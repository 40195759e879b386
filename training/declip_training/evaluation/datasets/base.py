"""What a data set of rated photos is: a description that says what it expects where, and a reader of its tables."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from declip_runtime.errors import TrainingError

from .files import Folder

TEST, VALIDATION, TRAIN, ALL = "test", "validation", "train", "all"
SPLITS = (TEST, VALIDATION, TRAIN, ALL)
_NAMED = 3


@dataclass(frozen=True)
class Row:
    """What a table says of one image.

    ``image`` and ``reference`` are paths in the data set's folder (the last part in any case), ``score`` the opinion
    turned so that higher is better, ``where`` the row's place for messages, ``group`` a part of the data set
    (distortion, category) within which a correlation of its own makes sense, ``attributes`` opinions by the name of
    the engine score that they are compared with.
    """

    image: str
    score: float
    where: str
    group: str = ""
    attributes: Mapping[str, float] = field(default_factory=dict)
    reference: str = ""


@dataclass(frozen=True)
class Photo:
    """One rated image that is there; ``name`` is its path in the data set's folder. The rest is as in ``Row``."""

    name: str
    path: Path
    score: float
    group: str = ""
    attributes: Mapping[str, float] = field(default_factory=dict)
    split: str = ALL
    reference: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A public data set in its official layout.

    ``layout`` are the files that are expected, ``source`` is how to get them (sentences), ``scale`` what the opinions
    mean and whether they were turned, ``splits`` the official ones in the order test, validation, train; none where
    the authors published none. ``read(folder, split)`` yields the rows of one official split, or of everything.
    """

    name: str
    title: str
    layout: tuple[str, ...]
    source: str
    scale: str
    read: Callable[[Folder, str], Iterable[Row]]
    splits: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Collection:
    """Photos of one split of a data set in its folder ``root``, in table order, and the names of those not on disk."""

    dataset: Dataset
    root: Path
    split: str
    photos: tuple[Photo, ...]
    missing: tuple[str, ...] = ()


def collect(dataset: Dataset, root: Path, split: str = TEST, *, allow_missing: bool = False) -> Collection:
    """Read ``split`` of ``dataset`` in the folder ``root``.

    "test" means everything where the authors published no split (``Collection.split`` then says "all"); "all" is
    every official split. ``allow_missing`` leaves out images that are in the table and not on disk, and names them.

    Raises TrainingError for a folder or file that is missing, a split that does not exist, a row that cannot be read
    or has no finite score, an image that stands in the table twice, and missing images.
    """
    return collect_parts(dataset, root, _parts(dataset, split), allow_missing=allow_missing)


def collect_parts(dataset: Dataset, root: Path, parts: Sequence[str], *, allow_missing: bool = False) -> Collection:
    """The same of several official splits together."""
    folder = Folder(root, dataset.title, dataset.source)
    photos: list[Photo] = []
    missing: list[str] = []
    seen: dict[str, str] = {}
    for part in parts:
        for row in dataset.read(folder, part):
            name, path = posixpath.normpath(row.image), folder.find(row.image)
            _check(row, name if path is None else posixpath.normpath(path.as_posix()), seen)
            if path is None:
                missing.append(name)
                continue
            reference = folder.find(row.reference) if row.reference else None
            photos.append(Photo(name, path, row.score, row.group, row.attributes, part, reference))
    if missing and not (allow_missing and photos):
        raise _missing(dataset, missing, len(missing) + len(photos))
    if not photos:
        raise TrainingError(f"{dataset.title} in {root} has no photos. {dataset.source}")
    return Collection(dataset, root, parts[0] if len(parts) == 1 else ALL, tuple(photos), tuple(missing))


def _parts(dataset: Dataset, split: str) -> tuple[str, ...]:
    if split in dataset.splits:
        return (split,)
    if split == ALL and dataset.splits:
        return dataset.splits
    if split == ALL or (split == TEST and not dataset.splits):
        return (ALL,)
    official = ", ".join((*dataset.splits, ALL)) if dataset.splits else "none, only all"
    raise TrainingError(f"{dataset.title} has no official {split} split. It has: {official}.")


def _check(row: Row, file: str, seen: dict[str, str]) -> None:
    for name, value in {"score": row.score, **row.attributes}.items():
        if not math.isfinite(value):
            raise TrainingError(f"{row.where}: the {name} of {row.image} is {value}. Repair the table or get it again.")
    first = seen.setdefault(file, row.where)
    if first != row.where:
        raise TrainingError(f"{row.where}: {row.image} stands in {first} already. Repair the table or get it again.")


def _missing(dataset: Dataset, missing: list[str], total: int) -> TrainingError:
    names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    advice = "" if len(missing) == total else " Or evaluate those that are there with --allow-missing."
    return TrainingError(
        f"{dataset.title} is incomplete: {len(missing):,} of {total:,} images in its table are not on disk ({names})."
        f" {dataset.source}{advice}"
    )
