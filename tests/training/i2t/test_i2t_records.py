from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from declip_runtime.errors import TrainingError
from declip_training.i2t.records import (
    COLUMNS,
    Record,
    image_path,
    read_provenance,
    read_records,
    read_rows,
    write_records,
)
from declip_training.opinions import read_table

RECORDS = [
    Record(
        "a", "images/a.jpg", "Sharp photo.", "A dog.", "Q-Instruct", 'He said "nice",\nthen left', "00", "11", "Natural"
    ),
    Record("ü", "/somewhere/b.jpg", "Weiche Töne \U0001f600", "Cat <b>", image_type="Art"),
]


def test_pandas_reads_what_is_written(tmp_path: Path) -> None:
    write_records(tmp_path / "t.parquet", RECORDS, {"model": "m"})
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert tuple(frame.columns) == COLUMNS
    assert [Record(*row) for row in frame.itertuples(index=False)] == RECORDS
    assert read_records(tmp_path / "t.parquet") == RECORDS
    assert read_provenance(tmp_path / "t.parquet") == {"model": "m"}
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_the_columns_are_plain_strings_without_nulls(tmp_path: Path) -> None:
    """What `datasets.load_dataset("parquet", ...)` maps to Value("string")."""
    write_records(tmp_path / "t.parquet", RECORDS)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert {str(field.type) for field in table.schema} == {"string"}
    assert sum(column.null_count for column in table.columns) == 0
    assert table.to_pylist() == [asdict(r) for r in RECORDS]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_other_tables_are_read_too(kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame([astuple(r) for r in RECORDS], columns=list(COLUMNS)).assign(more=1)
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    assert read_records(path) == RECORDS
    assert read_provenance(path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, "rows 1 and 2 of .* have the same id 'a'"),
        ({"perceptual": " "}, "row 2 of .*: perceptual is empty"),
        ({"semantic": None}, "row 2 of .*: semantic is empty"),
        ({"image": 3}, "row 2 of .*: image is empty or no text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [asdict(RECORDS[0]), {**asdict(RECORDS[1]), **change}]
    pd.DataFrame(rows).to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    with pytest.raises(TrainingError, match=message):
        read_records(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", "is not a table"),
        ("t.parquet", b"PAR1 not", "cannot be read as Parquet"),
        ("t.jsonl", b'{"id": "a"}\n{"id"', "line 2 of .* is not JSON|has no column"),
        ("t.jsonl", b"[1]\n", "line 1 of .* is not a JSON object"),
        ("t.jsonl", b"", "holds no records"),
        ("t.csv", b"id,image\na,b\n", "has no column 'perceptual'"),
        ("t.csv", "id,ü\n".encode("latin-1"), "Save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        read_records(tmp_path / name)
    with pytest.raises(TrainingError, match=r"does not exist|is not a table"):
        read_records(tmp_path / f"no-{name}")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ids_may_be_integers(kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame([asdict(RECORDS[0]), asdict(RECORDS[1])]).assign(id=[0, 1])
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert [record.id for record in read_records(path)] == ["0", "1"]
    frame.assign(id=[7, 7]).to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(TrainingError, match=r"rows 1 and 2 of .* have the same id '7'"):
        read_records(tmp_path / "twice.parquet")


HEADER = "id,image,perceptual,semantic\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,a.jpg,sharp,a dog\n2,b.jpg,sharp, soft light,a dog\n", r"row 2 of .* \(line 3\) has more values than"),
        ('1,a.jpg,"two\nlines",a dog\n\n2,b.jpg,sharp\n', r"row 2 of .* \(line 5\) has fewer values than"),
        ('1,a.jpg,sharp,"a dog\n2,b.jpg,blurry,a cat\n', "unexpected end of data, in the row that begins in line 2"),
        ('1,a.jpg,sharp,"a" dog\n2,b.jpg,blurry,a cat\n', "expected after .*, in the row that begins in line 2"),
        ('1,a.jpg,sharp,a dog\n2,b.jpg,"x\n3,c.jpg,"y,z\n', "expected after .*, in the row that begins in line 3"),
    ],
)
def test_a_csv_whose_texts_would_shift_or_merge_is_refused(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{HEADER}{rows}")
    with pytest.raises(TrainingError, match=message):
        read_records(tmp_path / "t.csv")


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,image,perceptual,semantic,perceptual,,\n1,a.jpg,sharp,a dog,blurry,,\n")
    parquet.write_table(pa.table([["1"], ["2"]], names=["id", "id"]), tmp_path / "t.parquet")
    for name, column in (("t.csv", "perceptual"), ("t.parquet", "id")):
        with pytest.raises(TrainingError, match=rf"{name} has several columns '{column}'\. Rename or remove"):
            list(read_rows(tmp_path / name))
    (tmp_path / "unnamed.csv").write_text("image,score,,\na.jpg,3,,\n")
    assert [row["image"] for row in read_rows(tmp_path / "unnamed.csv")] == ["a.jpg"]


def test_quoted_texts_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b'\xef\xbb\xbfid,image,perceptual,semantic\r\n\r\n1,a.jpg,"sharp, ""soft""\r\nlight",a dog\r\n'
    )
    expected = {"id": "1", "image": "a.jpg", "perceptual": 'sharp, "soft"\r\nlight', "semantic": "a dog"}
    assert list(read_rows(tmp_path / "t.csv")) == [expected]


def test_ratings_are_read_as_strictly(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("image,score\na, b.jpg,3\n")
    with pytest.raises(TrainingError, match="has more values than the header has columns"):
        read_table(tmp_path / "ratings.csv")


def test_parquet_that_is_no_utf8_says_so(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    parquet.write_table(
        pa.table({"id": ["1"], "image": ["a"], "perceptual": bad, "semantic": ["y"]}), tmp_path / "t.parquet"
    )
    with pytest.raises(TrainingError, match=r"t\.parquet cannot be read as Parquet: 'utf-8' codec"):
        read_records(tmp_path / "t.parquet")


def test_a_failed_write_keeps_the_old_table(tmp_path: Path) -> None:
    write_records(tmp_path / "t.parquet", RECORDS)
    with pytest.raises(UnicodeEncodeError):
        write_records(tmp_path / "t.parquet", [Record("a", "b", "\ud800", "d")])
    assert read_records(tmp_path / "t.parquet") == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_table_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_records(tmp_path / "t.parquet", RECORDS)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_images_are_relative_to_the_table() -> None:
    assert image_path(Path("/data/t.parquet"), "images/a.jpg") == Path("/data/images/a.jpg")
    assert image_path(Path("/data/t.parquet"), "/other/a.jpg") == Path("/other/a.jpg")
