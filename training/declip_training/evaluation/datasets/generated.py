"""Data sets of generated images: AGIQA-3K, RichHF-18K, Simulacra Aesthetic Captions (SAC)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from declip_runtime.errors import TrainingError

from .base import TEST, TRAIN, VALIDATION, Dataset, Row
from .files import Folder, csv_rows, number
from .tfrecord import Feature, read_examples

# --- AGIQA-3K


def _agiqa(folder: Folder, _split: str) -> Iterator[Row]:
    rows = list(csv_rows(folder.file("data.csv"), ("name", "mos_quality")))
    places = ("AGIQA-3K", "images", "Images", ".")
    images = folder.directory(*places, holding=rows[0][1]["name"].strip() if rows else "")
    for where, row in rows:
        name = row["name"].strip()
        group = name.split("_")[0]  # the generator
        yield Row(f"{images}/{name}", number(row["mos_quality"], where, "mos_quality"), where, group)


AGIQA = Dataset(
    name="agiqa",
    title="AGIQA-3K",
    layout=("data.csv (name, mos_quality)", "AGIQA-3K/*.jpg, or images/, or beside the table"),
    source="Get AGIQA-3K.zip and data.csv from github.com/lcysyzxdxc/AGIQA-3k-Database.",
    scale="MOS of perceived quality 0..5, higher is better (not the one of alignment)",
    read=_agiqa,
)

# --- RichHF-18K

_RICHHF_FILES = {TEST: "test.tfrecord", VALIDATION: "dev.tfrecord", TRAIN: "train.tfrecord"}


def _richhf(folder: Folder, split: str) -> Iterator[Row]:
    table = folder.file(_RICHHF_FILES[split])
    theirs = PurePosixPath(_RICHHF_FILES[split]).stem  # the validation split is dev
    by_stem: dict[str, str] = {}
    for directory in ("images", theirs):
        by_stem |= {PurePosixPath(path).stem: path for path in folder.below(directory)}
    for place, example in enumerate(read_examples(table), 1):
        where = f"record {place} of {table}"
        name = PurePosixPath(_first(example, "filename", bytes, where).decode("utf-8", "replace"))
        score = _first(example, "aesthetics_score", float, where)
        # Pick-a-Pic delivers JPEG bytes for what is called .png here
        yield Row(by_stem.get(name.stem, f"images/{name.name}"), float(score), where)


def _first(example: dict[str, Feature], name: str, kind: type, where: str) -> bytes:
    values = example.get(name) or []
    if not values or not isinstance(values[0], kind):
        raise TrainingError(f"{where} has no {name}; it has {', '.join(sorted(example))}. Get the file again.")
    return values[0]  # type: ignore[return-value]


RICHHF = Dataset(
    name="richhf",
    title="RichHF-18K",
    layout=(
        "test.tfrecord (and dev.tfrecord, train.tfrecord)",
        "images/<uid>.png or .jpg, images/test/<uid>..., or test/000/<uid>... (the authors' get_dataset.py)",
    ),
    source=(
        "Clone github.com/google-research-datasets/richhf-18k with Git LFS, and save the images it names by their uid "
        "from Pick-a-Pic v1 (github.com/youweiliang/RichHF shows how; the original yuvalkirstain/pickapic_v1 is said "
        "to be gone from its hub, look for a copy)."
    ),
    scale="aesthetics score 0..1, higher is better",
    read=_richhf,
    splits=(TEST, VALIDATION, TRAIN),
    note="dev.tfrecord is the validation split. TensorFlow is not needed.",
)

# --- Simulacra Aesthetic Captions

_SAC_QUERY = """
    SELECT paths.path, AVG(ratings.rating), COUNT(ratings.rating), images.id
    FROM ratings JOIN images ON images.id = ratings.iid JOIN paths ON paths.iid = images.id
    WHERE ratings.rating IS NOT NULL GROUP BY images.id ORDER BY images.id
"""


def _sac(folder: Folder, _split: str) -> Iterator[Row]:
    database = folder.file("sac_public_2022_06_29.sqlite")
    images = folder.directory("images", "sac", "home/jdp/simulacra-aesthetic-captions", ".")
    for path, rating, _, identity in _query(database):
        where = f"image {identity} of {database}"
        yield Row(f"{images}/{path}", number(rating, where, "the rating"), where)


def _query(database: Path) -> Iterator[tuple[str, float, int, int]]:
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            yield from connection.execute(_SAC_QUERY)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise TrainingError(f"{database} cannot be read: {error}. Get it again.") from error


SAC = Dataset(
    name="sac",
    title="Simulacra Aesthetic Captions",
    layout=(
        "sac_public_2022_06_29.sqlite",
        "images/*.png: the pictures of sac.tar, or home/jdp/simulacra-aesthetic-captions/ as it unpacks",
    ),
    source=(
        "Get sac_public_2022_06_29.sqlite from github.com/JD-P/simulacra-aesthetic-captions and sac.tar as its README "
        "says, and unpack it beside the database, or put its pictures in images/."
    ),
    scale="mean of the ratings 1..10, higher is better",
    read=_sac,
    note="Only images that somebody rated count; there is no published split.",
)
