"""Data sets of the aesthetics of photos: AVA, AADB, PARA, EVA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean

from declip_runtime.errors import TrainingError

from .base import TEST, TRAIN, VALIDATION, Dataset, Row
from .files import Folder, csv_rows, lines, number, text

# --- AVA

_AVA_COLUMNS = 15  # index, id, counts of the votes 1 to 10, two tags, challenge
_AVA_LISTED, _AVA_TEST = 0.8, 0.05
"""Least shares: of the test list in the table (officially .997), and of the table in the test list (.078)."""


def _ava(folder: Folder, split: str) -> Iterator[Row]:
    table = folder.file("AVA.txt")
    listed = folder.file("aesthetics_image_lists/generic_test.jpgl")
    test = set()
    for where, line in lines(listed):
        if not line.isdecimal():
            raise TrainingError(f"{where} is {line[:40]!r}, not the number of an image. Get the list again.")
        test.add(line)
    images = folder.directory("images", "image", "ava_images")
    rows = found = 0
    for where, line in lines(table):
        cells = line.split()
        if len(cells) != _AVA_COLUMNS:
            raise folder.incomplete(f"part of the row ({where} has {len(cells)} of {_AVA_COLUMNS} columns)")
        rows, found = rows + 1, found + (cells[1] in test)
        if (cells[1] in test) == (split == TEST):
            votes = [number(cell, where, "a count of votes") for cell in cells[2:12]]
            if sum(votes) <= 0:
                raise folder.incomplete(f"every vote on image {cells[1]} ({where})")
            mean = sum(value * count for value, count in enumerate(votes, 1)) / sum(votes)
            yield Row(f"{images}/{cells[1]}.jpg", mean, where)
    # 19,930 of the 20,000 listed stand among the 255,530 rows; else test images would be taken for others, or be lost
    if found < _AVA_LISTED * len(test) or found < _AVA_TEST * rows:
        raise TrainingError(
            f"of {rows:,} images in {table} {found:,} are among the {len(test):,} of {listed}: one of them is cut off "
            "or another list. Get both again."
        )


AVA = Dataset(
    name="ava",
    title="AVA",
    layout=("AVA.txt", "aesthetics_image_lists/generic_test.jpgl", "images/<id>.jpg (or image/, ava_images/)"),
    source="Get lists and images as github.com/imfing/ava_downloader describes.",
    scale="mean of the votes 1..10, higher is better",
    read=_ava,
    splits=(TEST, TRAIN),
    note=(
        "Test is the authors' generic_test.jpgl: 20,000 ids, of which 19,930 stand in AVA.txt and so have votes; train "
        "is everything else. Public copies lack some images: use --allow-missing and state n."
    ),
)

# --- AADB

_AADB_SPLITS = {
    TEST: ("TestNew", ("AADB_newtest_originalSize", "AADB_newtest", "datasetImages_warp256")),
    VALIDATION: ("Validation", ("datasetImages_originalSize", "datasetImages_warp256")),
    TRAIN: ("Train", ("datasetImages_originalSize", "datasetImages_warp256")),
}
_SCORE_PREFIX = re.compile(r"^\d\.\d+_")


def _aadb(folder: Folder, split: str) -> Iterator[Row]:
    list_name, folders = _AADB_SPLITS[split]
    table = folder.file(f"imgListFiles_label/imgList{list_name}Regression_score.txt")
    images = folder.directory(*folders)
    # the official test images carry their score in front of the name that the lists use
    plain = {_SCORE_PREFIX.sub("", name): name for name in folder.names(images)}
    for where, line in lines(table):
        name, *rest = line.split(maxsplit=1)
        score = number(text(rest[0] if rest else "", where, "the score"), where, "the score")
        yield Row(f"{images}/{plain.get(name, name)}", score, where)


AADB = Dataset(
    name="aadb",
    title="AADB",
    layout=(
        "imgListFiles_label/imgListTestNewRegression_score.txt (and Validation, Train)",
        "AADB_newtest_originalSize/*.jpg for test, datasetImages_originalSize/*.jpg for the rest; or "
        "datasetImages_warp256/",
    ),
    source="Get lists and images as github.com/aimerykong/deepImageAestheticsAnalysis describes.",
    scale="score 0..1, higher is better",
    read=_aadb,
    splits=(TEST, VALIDATION, TRAIN),
    note="Test is the new test list, as the authors' AADBinfo.mat has it: 1,000 photos.",
)

# --- PARA

# engine score -> column
_PARA_ATTRIBUTES = {
    "composition": "compositionScore_mean",
    "color": "colorScore_mean",
    "depth_of_field": "dofScore_mean",
    "light": "lightScore_mean",
    "object_emphasis": "isObjectEmphasis_mean",
    "quality": "qualityScore_mean",
}


def _para(folder: Folder, split: str) -> Iterator[Row]:
    table = folder.file(f"annotation/PARA-Giaa{split.capitalize()}.csv")
    columns = ("sessionId", "imageName", "aestheticScore_mean", *_PARA_ATTRIBUTES.values())
    for where, row in csv_rows(table, columns):
        attributes = {name: number(row[column], where, column) for name, column in _PARA_ATTRIBUTES.items()}
        score = number(row["aestheticScore_mean"], where, "aestheticScore_mean")
        yield Row(f"imgs/{row['sessionId'].strip()}/{row['imageName'].strip()}", score, where, attributes=attributes)


PARA = Dataset(
    name="para",
    title="PARA",
    layout=("annotation/PARA-GiaaTest.csv", "annotation/PARA-GiaaTrain.csv", "imgs/<session>/<image>.jpg"),
    source="Get PARA from cv-datasets.institutecv.com (data sets of OPPO Research Institute).",
    scale="mean aesthetic score 1..5, higher is better",
    read=_para,
    splits=(TEST, TRAIN),
    note="Attributes: composition, color, depth_of_field, light, object_emphasis (share of raters), quality.",
)

# --- EVA


def _eva(folder: Folder, _split: str) -> Iterator[Row]:
    table = folder.file("data/votes_filtered.csv")
    votes: dict[str, list[float]] = {}
    first: dict[str, str] = {}
    for where, row in csv_rows(table, ("image_id", "score"), delimiter="="):
        image = row["image_id"].strip()
        first.setdefault(image, where)
        votes.setdefault(image, []).append(number(row["score"], where, "the score"))
    places = ("images/EVA_together", "images/EVA_together/EVA_together", "EVA_together", "images")
    images = folder.directory(*places, holding=f"{next(iter(votes), '')}.jpg")
    for image, scores in votes.items():
        yield Row(f"{images}/{image}.jpg", fmean(scores), first[image])


EVA = Dataset(
    name="eva",
    title="EVA",
    layout=("data/votes_filtered.csv (columns separated by =)", "images/EVA_together/<id>.jpg"),
    source="Clone github.com/kang-gnak/eva-dataset with Git LFS, join its seven zip parts and unzip them in images/.",
    scale="mean of the votes 0..10, higher is better",
    read=_eva,
    note="The filtered votes, as in the paper of EVA: 4,070 of 5,101 images have some.",
)
