"""Data sets of real photos with the faults they were taken with: LIVE Challenge, KonIQ-10k, SPAQ, BIQ2021."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .base import TEST, TRAIN, VALIDATION, Dataset, Row
from .files import Folder, csv_rows, mat_values, number, sheet_rows, text

# --- LIVE In the Wild Challenge

_TRAINING_IMAGES = 7


def _livec(folder: Folder, _split: str) -> Iterator[Row]:
    names_path, mos_path = folder.file("Data/AllImages_release.mat"), folder.file("Data/AllMOS_release.mat")
    names, mos = mat_values(names_path, "AllImages_release"), mat_values(mos_path, "AllMOS_release")
    if np.shape(names) != np.shape(mos):
        raise folder.incomplete(f"part of {names_path} or {mos_path} ({np.size(names)} names, {np.size(mos)} opinions)")
    for place, (name, score) in enumerate(zip(names, mos, strict=True)):
        if place < _TRAINING_IMAGES:  # shown to the raters to explain the task; they lie in Images/trainingImages
            continue
        where = f"entry {place + 1} of {mos_path}"
        yield Row(f"Images/{name}", number(score, where, "the MOS"), where)


LIVEC = Dataset(
    name="livec",
    title="LIVE In the Wild Challenge",
    layout=("Data/AllImages_release.mat", "Data/AllMOS_release.mat", "Images/*.bmp, *.JPG"),
    source="Get ChallengeDB_release from live.ece.utexas.edu/research/ChallengeDB.",
    scale="MOS 0..100, higher is better",
    read=_livec,
    note="The first seven entries are training images of the study and are left out: 1,162 photos.",
)

# --- KonIQ-10k

_KONIQ_SPLITS = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


def _koniq(folder: Folder, split: str) -> Iterator[Row]:
    images = folder.directory("1024x768", "512x384")
    table = folder.file("koniq10k_distributions_sets.csv")
    for where, row in csv_rows(table, ("image_name", "MOS", "set")):
        if row["set"].strip() not in _KONIQ_SPLITS.values():
            raise folder.incomplete(f"the set of {row['image_name']} ({where} says {row['set']!r})")
        if row["set"].strip() == _KONIQ_SPLITS[split]:
            yield Row(f"{images}/{row['image_name'].strip()}", number(row["MOS"], where, "MOS"), where)


KONIQ = Dataset(
    name="koniq",
    title="KonIQ-10k",
    layout=("koniq10k_distributions_sets.csv (image_name, MOS, set)", "1024x768/*.jpg, or else 512x384/*.jpg"),
    source=(
        "Get images from database.mmsp-kn.de/koniq-10k-database.html and the table with the official sets from "
        "github.com/subpic/koniq (metadata/koniq10k_distributions_sets.csv)."
    ),
    scale="MOS 0..100, higher is better",
    read=_koniq,
    splits=(TEST, VALIDATION, TRAIN),
    note=(
        "koniq10k_scores_and_distributions.csv, which comes with the images, has no sets and its MOS is 1..5: "
        "it is not read."
    ),
)

# --- SPAQ

# engine score -> column. The scale of "Noisiness" runs from noisy to clean, as that of the engine score does.
_SPAQ_ATTRIBUTES = {
    "brightness": "brightness",
    "colorfulness": "colorfulness",
    "contrast": "contrast",
    "noise": "noisiness",
    "sharpness": "sharpness",
}


def _spaq(folder: Folder, _split: str) -> Iterator[Row]:
    table = folder.file("Annotations/MOS and Image attribute scores.xlsx")
    for where, row in sheet_rows(table, ("image name", "mos", *_SPAQ_ATTRIBUTES.values())):
        attributes = {name: number(row[column], where, column) for name, column in _SPAQ_ATTRIBUTES.items()}
        image = text(row["image name"], where, "the name")
        yield Row(f"TestImage/{image}", number(row["mos"], where, "MOS"), where, attributes=attributes)


SPAQ = Dataset(
    name="spaq",
    title="SPAQ",
    layout=("Annotations/MOS and Image attribute scores.xlsx", "TestImage/*.jpg"),
    source="Get SPAQ from github.com/h4nwei/SPAQ.",
    scale="MOS and attributes 0..100, higher is better (noisiness: higher is cleaner)",
    read=_spaq,
    note="Attributes: brightness, colorfulness, contrast, noise, sharpness.",
)

# --- BIQ2021


def _biq2021(folder: Folder, split: str) -> Iterator[Row]:
    for where, row in csv_rows(folder.file(f"{split.capitalize()} (Images and MOS).csv"), ("Image Name", "MOS")):
        image = row["Image Name"].strip()
        yield Row(f"Images/{image}", number(row["MOS"], where, "MOS"), where, image[:4])  # ss01, ss02 or ss03


BIQ2021 = Dataset(
    name="biq2021",
    title="BIQ2021",
    layout=("Train (Images and MOS).csv", "Test (Images and MOS).csv", "Images/*.jpg"),
    source="Clone github.com/nisarahmedrana/BIQ2021.",
    scale="MOS 0..1, higher is better",
    read=_biq2021,
    splits=(TEST, TRAIN),
    note=(
        "The whole official Test. The bundled engine is judged on the part of it that has no near-duplicate in Train "
        "(declip_training.evaluation.biq2021). Each look at Test adds a row to a ledger, that of `declip evaluate` too."
    ),
)
