"""I&2T records and the tables that hold them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    are hexadecimal, empty where not known. ``image_type`` is Natural, Art, AIGC or what the source calls it.
    """

    id: str
    image: str
    perceptual: str
    semantic: str
    source: str = ""
    source_text: str = ""
    image_sha256: str = ""
    text_sha256: str = ""
    image_type: str = ""


COLUMNS = tuple(f.name for f in fields(Record))
REQUIRED = ("id", "image", "perceptual", "semantic")
_PROVENANCE = "declip.i2t."
_ROWS_AT_ONCE = 1024
_LONGEST_FIELD = 2**31 - 1


def read_records(path: Path) -> list[Record]:
    """Read a table (.parquet, .jsonl or .csv, by its name) of records; other columns are ignored.

    Raises TrainingError for a file that cannot be read, a missing column, an empty value of a required column and an
    id that occurs twice, naming the row; nothing is skipped. Ids may be integers.
    """
    seen: dict[str, int] = {}
    records = []
    for number, row in enumerate(read_rows(path), 1):
        for name in REQUIRED:
            if name not in row:
                raise TrainingError(f"{path} has no column {name!r}. It needs {', '.join(REQUIRED)}.")
            if not required_text(row, name):
                raise TrainingError(f"row {number} of {path}: {name} is empty or no text. Fill it or remove the row.")
        texts = {name: required_text(row, name) for name in REQUIRED}
        first = seen.setdefault(texts["id"], number)
        if first != number:
            raise TrainingError(
                f"rows {first} and {number} of {path} have the same id {texts['id']!r}. Make ids unique."
            )
        records.append(Record(**{name: str(row.get(name) or "") for name in COLUMNS} | texts))
    if not records:
        raise TrainingError(f"{path} holds no records. Build it again with declip i2t.")
    return records


def required_text(row: Mapping[str, Any], name: str) -> str:
    """The value of a required column; empty where there is none, and where it is no text. An id may be an integer."""
    value = row.get(name)
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else ""


def read_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table (.parquet, .jsonl or .csv, by its name) as they are.

    Of Parquet only ``columns`` are read, where they are named: the others may hold the images themselves.

    Raises TrainingError for a file that is missing, of another kind, or damaged.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise TrainingError(f"{path} is not a table. Give a file that ends in {', '.join(_READERS)}.")
    if not path.is_file():
        raise TrainingError(f"{path} does not exist. Check the path.")
    yield from reader(path, columns)


def write_records(path: Path, records: Sequence[Record], provenance: Mapping[str, str] | None = None) -> None:
    """Write records to ``path`` as Parquet, under a temporary name first.

    ``provenance`` says what they were made from (model, hashes); ``read_provenance`` gives it back.
    """
    import pyarrow as pa
    from pyarrow import parquet

    metadata = {f"{_PROVENANCE}{key}": value for key, value in (provenance or {}).items()}
    schema = pa.schema([(c, pa.string()) for c in COLUMNS], metadata=metadata)
    partial = path.with_name(path.name + ".partial")
    table = pa.Table.from_pylist([asdict(r) for r in records], schema=schema)
    try:
        with partial.open("wb") as stream:  # pyarrow itself opens no path that is not UTF-8
            parquet.write_table(table, stream, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_provenance(path: Path) -> dict[str, str]:
    """What ``write_records`` was told the table was made from; empty for CSV and JSONL."""
    from pyarrow import parquet

    if path.suffix.lower() != ".parquet":
        return {}
    with path.open("rb") as stream:
        stored = {k.decode(): v.decode() for k, v in (parquet.read_schema(stream).metadata or {}).items()}
    return {k.removeprefix(_PROVENANCE): v for k, v in stored.items() if k.startswith(_PROVENANCE)}


def image_path(table: Path, image: str) -> Path:
    """Where the image of a record of ``table`` lies."""
    return table.parent / image


def _read_parquet(path: Path, columns: Collection[str] | None) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            _require_once(names, path)
            wanted = None if columns is None else [name for name in names if name in columns]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as Parquet: {error}. Copy or build it again.") from error


def _read_jsonl(path: Path, _columns: Collection[str] | None) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"line {number} of {path} is not JSON: {error}. Repair or remove it.") from error
        if not isinstance(row, dict):
            raise TrainingError(f"line {number} of {path} is not a JSON object. Repair or remove it.")
        yield row


def _read_csv(path: Path, _columns: Collection[str] | None) -> Iterator[Mapping[str, Any]]:
    """Strictly: a comma or a quote out of place shifts, cuts or merges texts, and nobody sees it in what is made."""
    csv.field_size_limit(_LONGEST_FIELD)  # the limit is the module's, and too low for a page of comments
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] = []
    number, line = 0, 1
    try:
        for values in reader:
            if not header:
                header = values
                _require_once(header, path)
            elif values:
                number += 1
                _require_as_many(values, header, f"row {number} of {path} (line {line})")
                yield dict(zip(header, values, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise TrainingError(
            f"{path} cannot be read as CSV: {error}, in the row that begins in line {line}. Put texts that hold quotes "
            "in quotes, and write those inside twice."
        ) from error


def _require_once(header: Sequence[str], path: Path) -> None:
    """A row has one value for a name: of a name that stands twice, the others would be lost."""
    if twice := [name for name, times in Counter(header).items() if name.strip() and times > 1]:
        raise TrainingError(f"{path} has several columns {twice[0]!r}. Rename or remove the others.")


def _require_as_many(values: Sequence[str], header: Sequence[str], where: str) -> None:
    if len(values) > len(header):
        raise TrainingError(f"{where} has more values than the header has columns. Put texts with a comma in quotes.")
    if len(values) < len(header):
        raise TrainingError(f"{where} has fewer values than the header has columns. Leave a value empty, not out.")


def _lines(path: Path) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from stream
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Save it as UTF-8.") from error


_READERS: Mapping[str, Callable[[Path, Collection[str] | None], Iterator[Mapping[str, Any]]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
