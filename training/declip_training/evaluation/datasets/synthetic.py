"""Data sets of synthetic distortions: LIVE, CSIQ, TID2013, KADID-10k. Every photo has a pristine reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from .base import Dataset, Row
from .files import Folder, csv_rows, lines, mat_values, number, sheet_rows, text

# --- LIVE

# The five distortions in the order of dmos.mat, and how many images each has.
_LIVE_FOLDERS = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))


def _live(folder: Folder, _split: str, table: str = "dmos.mat", variable: str = "dmos") -> Iterator[Row]:
    dmos_path, names_path = folder.file(table), folder.file("refnames_all.mat")
    dmos, originals = np.atleast_1d(mat_values(dmos_path, variable)), np.atleast_1d(mat_values(dmos_path, "orgs"))
    references = np.atleast_1d(mat_values(names_path, "refnames_all"))
    images = [(kind, number_) for kind, count in _LIVE_FOLDERS for number_ in range(1, count + 1)]
    if not len(images) == len(dmos) == len(originals) == len(references):
        raise folder.incomplete(
            f"part of {dmos_path} or {names_path} ({len(dmos)} opinions, {len(originals)} marks of originals and "
            f"{len(references)} names for {len(images)} images)"
        )
    for place, (kind, number_) in enumerate(images):
        if originals[place]:  # the pristine photos stand among the distorted ones, all with DMOS 0
            continue
        where = f"entry {place + 1} of {dmos_path}"
        score = 100.0 - number(dmos[place], where, variable)
        yield Row(f"{kind}/img{number_}.bmp", score, where, kind, reference=f"refimgs/{references[place]}")


LIVE = Dataset(
    name="live",
    title="LIVE",
    layout=(
        "dmos.mat (dmos, orgs)",
        "refnames_all.mat",
        "refimgs/*.bmp",
        "jp2k/, jpeg/, wn/, gblur/, fastfading/ with img1.bmp ...",
    ),
    source="Get databaserelease2 of the LIVE Image Quality Assessment Database, live.ece.utexas.edu/research/Quality.",
    scale="DMOS about 0..100, turned: 100 - DMOS",
    read=_live,
    note=(
        "The 203 originals that `orgs` marks are left out: 779 distorted photos. Opinions as in the release; those "
        "that were put on one scale later are live-realigned."
    ),
)

LIVE_REALIGNED = replace(
    LIVE,
    name="live-realigned",
    title="LIVE (realigned)",
    layout=("dmos_realigned.mat (dmos_new, orgs)", *LIVE.layout[1:]),
    source=f"{LIVE.source} The file dmos_realigned.mat is a download of its own there.",
    read=partial(_live, table="dmos_realigned.mat", variable="dmos_new"),
    note=(
        "The same 779 photos with the opinions of the seven studies put on one scale, which is what many papers use: "
        "compare no numbers of the one with those of the other."
    ),
)

# --- CSIQ

# dst_type in the sheet -> folder and the word in the file's name
_CSIQ_KINDS = {
    "noise": ("awgn", "AWGN"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
    "fnoise": ("fnoise", "fnoise"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
}


def _csiq(folder: Folder, _split: str) -> Iterator[Row]:
    table = folder.file("csiq.DMOS.xlsx")
    distorted, pristine = folder.directory("dst_imgs"), folder.directory("src_imgs")
    for where, row in sheet_rows(table, ("image", "dst_type", "dst_lev", "dmos"), "all_by_image"):
        kind = text(row["dst_type"], where, "dst_type").lower()
        if kind not in _CSIQ_KINDS:
            raise folder.incomplete(f"the distortion {kind!r} ({where})")
        place, word = _CSIQ_KINDS[kind]
        image, level = text(row["image"], where, "image"), text(row["dst_lev"], where, "dst_lev")
        yield Row(
            f"{distorted}/{place}/{image}.{word}.{level}.png",
            1.0 - number(row["dmos"], where, "dmos"),
            where,
            place,
            reference=f"{pristine}/{image}.png",
        )


CSIQ = Dataset(
    name="csiq",
    title="CSIQ",
    layout=(
        "csiq.DMOS.xlsx (sheet all_by_image)",
        "src_imgs/*.png",
        "dst_imgs/awgn/1600.AWGN.1.png ..., and blur/, contrast/, fnoise/, jpeg/, jpeg2000/",
    ),
    source="Get images and csiq.DMOS.xlsx from the CSIQ page, s2.smu.edu/~eclarson/csiq.html.",
    scale="DMOS 0..1, turned: 1 - DMOS",
    read=_csiq,
)

# --- TID2013


def _tid2013(folder: Folder, _split: str) -> Iterator[Row]:
    for where, line in lines(folder.file("mos_with_names.txt")):
        mos, *rest = line.split(maxsplit=1)
        image = text(rest[0] if rest else "", where, "the name")
        parts = image.split("_")
        yield Row(
            f"distorted_images/{image}",
            number(mos, where, "the MOS"),
            where,
            f"distortion {parts[1]}" if len(parts) == 3 else "",
            reference=f"reference_images/{parts[0]}.bmp",
        )


TID2013 = Dataset(
    name="tid2013",
    title="TID2013",
    layout=("mos_with_names.txt", "distorted_images/*.bmp", "reference_images/*.BMP"),
    source="Get tid2013.rar from www.ponomarenko.info/tid2013.htm.",
    scale="MOS 0..9, higher is better",
    read=_tid2013,
    note="Names in table and on disk differ in case (I01_01_1.bmp, i25_24_5.bmp, I01.BMP); any case is found.",
)

# --- KADID-10k


def _kadid(folder: Folder, _split: str) -> Iterator[Row]:
    for where, row in csv_rows(folder.file("dmos.csv"), ("dist_img", "ref_img", "dmos")):
        image = row["dist_img"].strip()
        parts = image.split("_")
        yield Row(
            f"images/{image}",
            number(row["dmos"], where, "dmos"),
            where,
            f"distortion {parts[1]}" if len(parts) == 3 else "",
            reference=f"images/{row['ref_img'].strip()}",
        )


KADID = Dataset(
    name="kadid",
    title="KADID-10k",
    layout=("dmos.csv (dist_img, ref_img, dmos, var)", "images/*.png, distorted and pristine"),
    source="Get kadid10k.zip from database.mmsp-kn.de/kadid-10k-database.html.",
    scale="MOS 1..5, higher is better",
    read=_kadid,
    note="The column called dmos is a mean opinion score (1 bad, 5 imperceptible) and is not turned.",
)
