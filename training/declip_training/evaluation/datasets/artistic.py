"""Data sets of the aesthetics of paintings and drawings: BAID, APDD, APDDv2."""

from __future__ import annotations

from collections.abc import Iterator

from .base import TEST, TRAIN, VALIDATION, Dataset, Row
from .files import Folder, csv_rows, number

# --- BAID

_BAID_TABLES = {TEST: "test_set.csv", VALIDATION: "val_set.csv", TRAIN: "train_set.csv"}


def _baid(folder: Folder, split: str) -> Iterator[Row]:
    images = folder.directory("images")
    for where, row in csv_rows(folder.file(f"dataset/{_BAID_TABLES[split]}"), ("image", "score")):
        yield Row(f"{images}/{row['image'].strip()}", number(row["score"], where, "the score"), where)


BAID = Dataset(
    name="baid",
    title="BAID",
    layout=("dataset/test_set.csv (and val_set.csv, train_set.csv)", "images/*.jpg"),
    source="Clone github.com/Dreemurr-T/BAID and run its downloading_script/download.py.",
    scale="score 0..10, higher is better",
    read=_baid,
    splits=(TEST, VALIDATION, TRAIN),
)

# --- APDD and APDDv2

_APDD_SOURCE = "Get images and table as github.com/BestiVictory/{} describes, and put the images in images/."
_ENCODINGS = ("utf-8-sig", "gb18030")


def _apdd_rows(folder: Folder, table: str) -> Iterator[Row]:
    rows = list(csv_rows(folder.file(table), ("filename", "Score"), encodings=_ENCODINGS))
    places = ("images", "APDD", "APDDv2images", "APDDv2images/APDDv2images")
    images = folder.directory(*places, holding=rows[0][1]["filename"].strip() if rows else "")
    for where, row in rows:
        group = str(row.get("Artistic Categories") or "").strip()
        yield Row(f"{images}/{row['filename'].strip()}", number(row["Score"], where, "Score"), where, group)


def _apdd(folder: Folder, _split: str) -> Iterator[Row]:
    yield from _apdd_rows(folder, "APDD.csv")


APDD = Dataset(
    name="apdd",
    title="APDD",
    layout=("APDD.csv (filename, Artistic Categories, Score)", "images/*"),
    source=_APDD_SOURCE.format("APDD"),
    scale="total aesthetic score 0..10, higher is better",
    read=_apdd,
    note="The first release, 4,985 images, which the paper cites; it has no published split.",
)

_APDDV2_TABLES = {TEST: "test.csv", VALIDATION: "valid.csv", TRAIN: "train.csv"}


def _apddv2(folder: Folder, split: str) -> Iterator[Row]:
    yield from _apdd_rows(folder, f"csvfiles/{_APDDV2_TABLES[split]}")


APDDV2 = Dataset(
    name="apddv2",
    title="APDDv2",
    layout=("csvfiles/test.csv (and valid.csv, train.csv)", "images/*"),
    source=_APDD_SOURCE.format("APDDv2"),
    scale="total aesthetic score 0..10, higher is better",
    read=_apddv2,
    splits=(TEST, VALIDATION, TRAIN),
    note="The second release, 10,023 images, with published splits; not the one of the paper.",
)
