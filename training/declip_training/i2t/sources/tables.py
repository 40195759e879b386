"""Any JSONL, CSV or Parquet file with a column of image paths and one of texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from declip_runtime.errors import TrainingError
from declip_training.i2t.records import read_rows
from declip_training.i2t.tally import Tally

from .json_stream import LINES, json_objects


def read_table(
    path: Path, tally: Tally, image: str, text: str, kind: str | None
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (where, image, text, image type) from the columns ``image``, ``text`` and ``kind`` (None: no such column).

    Raises TrainingError for a file of another form and for a column that no row has.
    """
    wanted = {name for name in (image, text, kind) if name is not None}
    rows = json_objects(path, tally) if path.suffix.lower() in LINES else _numbered(path, wanted)
    seen: set[str] = set()
    empty = True
    for where, row in rows:
        empty = False
        seen |= wanted & row.keys()
        found, description = row.get(image), row.get(text)
        if _nothing(found):
            tally.add("row without an image", where)
        elif not isinstance(found, str):
            tally.add("row whose image is no path but data", where)
        elif not isinstance(description, str) and not _nothing(description):
            tally.add("row whose text is no text but data", where)
        else:
            label = None if kind is None else row.get(kind)
            described = description if isinstance(description, str) else ""
            yield where, found, described, "" if label is None else str(label)
    if empty:
        tally.add("file without rows", path.name)
    elif missing := sorted(wanted - seen):
        raise TrainingError(
            f"{path} has no column {missing[0]!r}. Name the columns with --image-column, --text-column."
        )


def _nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _numbered(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, object]]]:
    for number, row in enumerate(read_rows(path, columns), 1):
        yield f"{path.name} row {number}", dict(row)
