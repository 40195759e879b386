"""I&2T records and the tables that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError


@dataclass(frozen=True)
class Record:
    """One image with its two descriptions.

    ``id`` is unique in a table. ``image`` is a path, absolute or relative to the table's folder. ``perceptual`` (T_p)
    says how the image looks, ``semantic`` (T_s) what it shows; neither is empty. ``source`` names the data set that
    ``source_text``, the human description, comes from; ``image_sha256`` and ``text_sha256`` (of ``source_text``)
    are hexadecimal, empty where not known.
    """

    id: str
    image: str
    perceptual: str
    semantic: str
    source: str = ""
    source_text: str = ""
    image_sha256: str = ""
    text_sha256: str = ""


COLUMNS = tuple(f.name for f in fields(Record))
REQUIRED = ("id", "image", "perceptual", "semantic")


def read_records(path: Path) -> list[Record]:
    """Read a table (.parquet, .jsonl or .csv, by its name) of records; other columns are ignored.

    Raises TrainingError for a file that cannot be read, a missing column, an empty value of a required column and an
    id that occurs twice, naming the row; nothing is skipped.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise TrainingError(f"{path} is not an I&2T table. Give a file that ends in {', '.join(_READERS)}.")
    if not path.is_file():
        raise TrainingError(f"{path} does not exist. Build it with declip i2t, or check the path.")
    seen: dict[str, int] = {}
    records = []
    for number, row in enumerate(reader(path), 1):
        for name in REQUIRED:
            if name not in row:
                raise TrainingError(f"{path} has no column {name!r}. It needs {', '.join(REQUIRED)}.")
            if not isinstance(row[name], str) or not row[name].strip():
                raise TrainingError(f"row {number} of {path}: {name} is empty or no text. Fill it or remove the row.")
        first = seen.setdefault(row["id"], number)
        if first != number:
            raise TrainingError(f"rows {first} and {number} of {path} have the same id {row['id']!r}. Make ids unique.")
        records.append(Record(**{name: str(row.get(name) or "") for name in COLUMNS}))
    if not records:
        raise TrainingError(f"{path} holds no records. Build it again with declip i2t.")
    return records


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records to ``path`` as Parquet, under a temporary name first."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([asdict(r) for r in records], schema=pa.schema([(c, pa.string()) for c in COLUMNS]))
    partial = path.with_name(path.name + ".partial")
    parquet.write_table(table, partial, compression="zstd")
    partial.replace(path)


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise TrainingError(f"{path} cannot be read as Parquet: {error}. Copy or build it again.") from error


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TrainingError(f"line {number} of {path} is not JSON: {error}. Repair or remove it.") from error
        if not isinstance(row, dict):
            raise TrainingError(f"line {number} of {path} is not a JSON object. Repair or remove it.")
        yield row


def _read_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        yield from csv.DictReader(_lines(path))
    except csv.Error as error:
        raise TrainingError(f"{path} cannot be read as CSV: {error}. Save it as UTF-8 with quoted texts.") from error


def _lines(path: Path) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from stream
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Save it as UTF-8.") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Mapping[str, Any]]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
