"""Every data set in its official layout, a few tiny pictures big, with the traps that the real ones have.

Each picture shows a number, and the larger the number the better people liked it. So the number that is seen in a
file tells whether its score is the right one, and the order of the numbers whether the direction is.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from scipy.io import savemat
from tensorboard.summary.writer.record_writer import RecordWriter

Scores = Mapping[int, float]


@dataclass(frozen=True)
class Miniature:
    """What a reader must find: scores by the number in the picture, for test (or everything) and for other splits."""

    scores: Scores
    others: Mapping[str, Scores] = field(default_factory=dict)
    attributes: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    groups: Mapping[int, str] = field(default_factory=dict)
    references: bool = False
    tables: Sequence[str] = ()
    """Files without which test cannot be read."""


def draw(path: Path, number: int) -> None:
    """A picture that shows ``number`` (1 to 25 in any format, up to 1023 in a lossless one)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (10 * number,) * 3 if number <= 25 else (number // 256, number % 256, 255)
    Image.new("RGB", (8, 8), colour).save(path, format={".bmp": "BMP", ".png": "PNG"}.get(path.suffix.lower(), "JPEG"))


def number_in(path: Path) -> int:
    with Image.open(path) as image:
        red, green, blue = image.convert("RGB").getpixel((4, 4))
    return red * 256 + green if blue == 255 else round((red + green + blue) / 30)


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def cells(values: Sequence[object], *, column: bool = False) -> np.ndarray[Any, Any]:
    """A MATLAB cell array."""
    array = np.empty((len(values), 1) if column else (1, len(values)), object)
    array.ravel()[:] = values
    return array


def live(root: Path) -> Miniature:
    folders = [("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174)]
    images = [f"{folder}/img{i}.bmp" for folder, n in folders for i in range(1, n + 1)]
    originals = np.zeros(len(images), np.uint8)
    originals[[3, 230, 981]] = 1
    scores, groups = {}, {}
    for place, image in enumerate(images):
        draw(root / image, place + 26)
        if not originals[place]:
            scores[place + 26] = 100.0 - (80.0 - 0.05 * place)
            groups[place + 26] = image.split("/")[0]
    dmos = np.where(originals == 1, 0.0, 80.0 - 0.05 * np.arange(len(images)))  # an original would spoil the order
    for name in ("sailing1.bmp", "bikes.bmp"):
        draw(root / "refimgs" / name, 1)
    savemat(root / "dmos.mat", {"dmos": dmos[None, :], "orgs": originals[None, :]})
    savemat(root / "refnames_all.mat", {"refnames_all": cells(["sailing1.bmp", "bikes.bmp"] * 491)})
    return Miniature(scores, groups=groups, references=True, tables=("dmos.mat", "refnames_all.mat"))


def live_realigned(root: Path) -> Miniature:
    """LIVE's folder with the other file of opinions beside the first, which must not count."""
    made = live(root)
    opinions = np.full(982, 50.0)
    for number, score in made.scores.items():
        opinions[number - 26] = 100.0 - score / 2
    originals = np.zeros(982, np.uint8)
    originals[[3, 230, 981]] = 1
    savemat(root / "dmos_realigned.mat", {"dmos_new": opinions[None, :], "orgs": originals[None, :]})
    halved = {number: score / 2 for number, score in made.scores.items()}
    return replace(made, scores=halved, tables=("dmos_realigned.mat", "refnames_all.mat"))


def csiq(root: Path) -> Miniature:
    rows = [(1600, "noise", 1, "awgn/1600.AWGN.1"), ("boston", "jpeg 2000", 4, "jpeg2000/boston.jpeg2000.4"),
            ("boston", "blur", 2, "blur/boston.BLUR.2"), (1600, "jpeg", 5, "jpeg/1600.JPEG.5"),
            ("swarm", "contrast", 3, "contrast/swarm.contrast.3"),
            ("swarm", "fnoise", 1, "fnoise/swarm.fnoise.1")]  # fmt: skip
    workbook = openpyxl.Workbook()
    workbook.active.title = "all_by_level"
    sheet = workbook.create_sheet("all_by_image")
    for place, value in {"A1": "CSIQ", "D2": "all images"}.items():
        sheet[place] = value
    for column, name in enumerate(["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"], 4):
        sheet.cell(4, column, name)
    for number, (image, kind, level, file) in enumerate(rows, 1):
        for column, value in enumerate([image, 1, kind, level, 0.1, 0.9 - 0.1 * number], 4):
            sheet.cell(4 + number, column, value)
        draw(root / "dst_imgs" / f"{file}.png", number)
        draw(root / "src_imgs" / f"{image}.png", 20)
    workbook.save(root / "csiq.DMOS.xlsx")
    scores = {number: 0.1 + 0.1 * number for number in range(1, 7)}
    groups = {number: row[3].split("/")[0] for number, row in enumerate(rows, 1)}
    return Miniature(scores, groups=groups, references=True, tables=("csiq.DMOS.xlsx",))


def tid2013(root: Path) -> Miniature:
    files = {"I01_01_1.bmp": "i01_01_1.bmp", "i02_24_5.bmp": "I02_24_5.BMP", "I25_01_3.bmp": "i25_01_3.bmp",
             "i25_02_4.bmp": "i25_02_4.bmp"}  # fmt: skip
    lines = []
    for number, (listed, on_disk) in enumerate(files.items(), 1):
        draw(root / "distorted_images" / on_disk, number)
        lines.append(f"{number + 0.25:.5f} {listed}\r\n")
    for name in ("I01.BMP", "I02.BMP", "i25.bmp"):
        draw(root / "reference_images" / name, 9)
    write(root / "mos_with_names.txt", "".join(lines))
    groups = {1: "distortion 01", 2: "distortion 24", 3: "distortion 01", 4: "distortion 02"}
    scores = {number: number + 0.25 for number in range(1, 5)}
    return Miniature(scores, groups=groups, references=True, tables=("mos_with_names.txt",))


def kadid(root: Path) -> Miniature:
    rows = ["dist_img,ref_img,dmos,var"]
    for number in range(1, 5):
        draw(root / "images" / f"I01_0{number}_05.png", number)
        rows.append(f"I01_0{number}_05.png,I01.png,{number + 0.5},{9 - number}")
    draw(root / "images" / "I01.png", 9)
    write(root / "dmos.csv", "\n".join(rows) + "\n")
    groups = {number: f"distortion 0{number}" for number in range(1, 5)}
    return Miniature({n: n + 0.5 for n in range(1, 5)}, groups=groups, references=True, tables=("dmos.csv",))


def livec(root: Path) -> Miniature:
    names = [f"t{i}.bmp" for i in range(1, 8)] + ["3.bmp", "4.bmp", "10.JPG", "723.bmp"]
    for number, name in enumerate(names, 1):
        draw(root / "Images" / ("trainingImages" if name.startswith("t") else "") / name, number)
    mos = [99.0 - i for i in range(7)] + [10.0, 20.5, 30.0, 77.25]  # the training images would turn the order round
    (root / "Data").mkdir()
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": cells(names, column=True)})
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([mos])})
    tables = ("Data/AllImages_release.mat", "Data/AllMOS_release.mat")
    return Miniature({8: 10.0, 9: 20.5, 10: 30.0, 11: 77.25}, tables=tables)


def koniq(root: Path) -> Miniature:
    splits = {1: "test", 2: "training", 3: "test", 4: "validation", 5: "test"}
    rows = ['"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","set"']
    wrong = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"]
    for number, split in splits.items():
        draw(root / "1024x768" / f"9{number}.jpg", number)
        draw(root / "512x384" / f"9{number}.jpg", 25)
        rows.append(f'"9{number}.jpg",0,0,25,73,7,105,{number * 15.5},0.5,"{split}"')
        wrong.append(f"9{number}.jpg,0,0,25,73,7,105,{5 - number / 2},0.5,{90 - number}")
    write(root / "koniq10k_distributions_sets.csv", "\n".join(rows) + "\n")
    write(root / "koniq10k_scores_and_distributions.csv", "\n".join(wrong) + "\n")
    by = {split: {n: n * 15.5 for n, s in splits.items() if s == split} for split in splits.values()}
    others = {"train": by["training"], "validation": by["validation"]}
    return Miniature(by["test"], others, tables=("koniq10k_distributions_sets.csv",))


def spaq(root: Path) -> Miniature:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.append(["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"])
    attributes = {}
    for number in range(1, 6):
        draw(root / "TestImage" / f"0000{number}.jpg", number)
        values = [11.0 * number, 10.0 + number, 20.0 + number, 30.0 - number, 40.0 + number]
        names = ["brightness", "colorfulness", "contrast", "noise", "sharpness"]
        attributes[number] = dict(zip(names, values, strict=True))
        sheet.append([f"0000{number}.jpg", number * 12.5, *values])
    (root / "Annotations").mkdir()
    workbook.save(root / "Annotations" / "MOS and Image attribute scores.xlsx")
    tables = ("Annotations/MOS and Image attribute scores.xlsx",)
    return Miniature({n: n * 12.5 for n in range(1, 6)}, attributes=attributes, tables=tables)


def agiqa(root: Path) -> Miniature:
    rows = ["name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"]
    generators = ["AttnGAN", "sd1.5", "AttnGAN", "midjourney"]
    for number, generator in enumerate(generators, 1):
        draw(root / "AGIQA-3K" / f"{generator}_normal_00{number}.jpg", number)
        prompt = '"a cat, sitting"' if number == 2 else "a tray of sushi"
        rows.append(f"{generator}_normal_00{number}.jpg,{prompt},,,,{number * 0.9},0.2,{5 - number},0.1")
    write(root / "data.csv", "\n".join(rows) + "\n")
    groups = dict(enumerate(generators, 1))
    return Miniature({n: n * 0.9 for n in range(1, 5)}, groups=groups, tables=("data.csv",))


def ava(root: Path) -> Miniature:
    lines, test, scores, train = [], [], {}, {}
    for number in range(1, 7):
        votes = [0] * 10
        votes[number], votes[number + 3] = 3, 1  # of the values number + 1 and number + 4
        lines.append(f"{number} 95{number} {' '.join(map(str, votes))} 1 22 1396\n")
        draw(root / "images" / f"95{number}.jpg", number)
        mean = (3 * (number + 1) + (number + 4)) / 4
        if number % 2:
            test.append(f"95{number}\n")
            scores[number] = mean
        else:
            train[number] = mean
    write(root / "AVA.txt", "".join(lines))
    write(root / "aesthetics_image_lists" / "generic_test.jpgl", "".join(test))
    return Miniature(scores, {"train": train}, tables=("AVA.txt", "aesthetics_image_lists/generic_test.jpgl"))


def aadb(root: Path) -> Miniature:
    test, train, validation = {1: 0.3, 2: 0.5, 3: 0.85}, {4: 0.4, 5: 0.6}, {6: 0.95}
    lists = {"TestNew": test, "Train": train, "Validation": validation, "Test": {7: 0.0}}
    for name, scores in lists.items():
        lines = []
        for number, score in scores.items():
            image = f"farm1_28{number}_2001_b.jpg"
            lines.append(f"{image} {score}\n")
            if name == "TestNew":
                draw(root / "AADB_newtest_originalSize" / f"{score:.3f}_{image}", number)
            else:
                draw(root / "datasetImages_originalSize" / image, number)
        write(root / "imgListFiles_label" / f"imgList{name}Regression_score.txt", "".join(lines))
        write(root / "imgListFiles_label" / f"imgList{name}Regression_Light.txt", "".join(reversed(lines)))
    tables = ("imgListFiles_label/imgListTestNewRegression_score.txt",)
    return Miniature(test, {"train": train, "validation": validation}, tables=tables)


def para(root: Path) -> Miniature:
    columns = {"quality": "qualityScore", "composition": "compositionScore", "color": "colorScore",
               "depth_of_field": "dofScore", "light": "lightScore", "object_emphasis": "isObjectEmphasis"}  # fmt: skip
    names = [f"{column}_mean" for column in columns.values()]
    attributes, found = {}, {}
    for split, numbers in {"Test": (1, 2, 3), "Train": (4, 5)}.items():
        rows = [["imageName", "sessionId", "semantic", "aestheticScore_1.0", "aestheticScore_mean", *names]]
        for number in numbers:
            session, image = f"session{number}", "iaa_pub1_.jpg"  # the same name in every session
            draw(root / "imgs" / session / image, number)
            values = [round(4.5 - number / 2 + place / 10, 3) for place in range(len(names))]
            attributes[number] = dict(zip(columns, values, strict=True))
            rows.append([image, session, "animal", "0", str(number * 0.9), *map(str, values)])
        path = root / "annotation" / f"PARA-Giaa{split}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
        found[split] = {number: number * 0.9 for number in numbers}
    attributes = {number: attributes[number] for number in found["Test"]}
    tables = ("annotation/PARA-GiaaTest.csv",)
    return Miniature(found["Test"], {"train": found["Train"]}, attributes=attributes, tables=tables)


def eva(root: Path) -> Miniature:
    rows = ["image_id=user_id=score=difficulty=visual=composition=quality=semantic=vote_time=1=2=3=4"]
    for number in range(1, 5):
        draw(root / "images" / "EVA_together" / f"7{number}.jpg", number)
        rows += [f"7{number}=E136={number}=4=3=2=1=1=5.1=1=0=0=0", f"7{number}=C9={number + 3}=1=1=1=1=1=2.0=0=0=0=1"]
    draw(root / "images" / "EVA_together" / "99.jpg", 25)  # nobody's filtered vote
    rows.append("71=E7=1=1=1=1=1=1=1=0=0=0=0")  # votes on one image do not stand together
    write(root / "data" / "votes_filtered.csv", "\n".join(rows) + "\n")
    scores = {1: (1 + 4 + 1) / 3, **{n: n + 1.5 for n in range(2, 5)}}
    return Miniature(scores, tables=("data/votes_filtered.csv",))


def baid(root: Path) -> Miniature:
    splits = {"test": (1, 2, 3), "val": (4, 5), "train": (6, 7)}
    found = {}
    for split, numbers in splits.items():
        rows = ["image,score", *(f"24170{number}.jpg,{number * 1.25}" for number in numbers)]
        write(root / "dataset" / f"{split}_set.csv", "\n".join(rows) + "\n")
        found[split] = {number: number * 1.25 for number in numbers}
        for number in numbers:
            draw(root / "images" / f"24170{number}.jpg", number)
    others = {"train": found["train"], "validation": found["val"]}
    return Miniature(found["test"], others, tables=("dataset/test_set.csv",))


_APDD_HEADER = (
    "filename,Artistic Categories,Score,Theme and logic,Creativity,Layout and composition,Space and perspective,"
    "The sense of order,Light and shadow,Color,Details and texture,The overall,Mood"
)


def _apdd_rows(root: Path, numbers: Sequence[int]) -> str:
    lines = [_APDD_HEADER]
    for number in numbers:
        name = f"00a79e928eee{number}.{'png' if number % 2 else 'jpg'}"
        draw(root / "images" / name, number)
        category = "oil painting*symbolism*portraiture" if number < 3 else "sketching*classicism*still life"
        lines.append(f"{name},{category},{number * 1.125},{9 - number},,6.5,6.83,6.33,,5.83,7,6.5,6.5")
    return "\r\n".join(lines) + "\r\n"


_APDD_GROUPS = {
    number: "oil painting*symbolism*portraiture" if number < 3 else "sketching*classicism*still life"
    for number in range(1, 9)
}


def apdd(root: Path) -> Miniature:
    write(root / "APDD.csv", "\ufeff" + _apdd_rows(root, (1, 2, 3, 4)))
    groups = {number: _APDD_GROUPS[number] for number in range(1, 5)}
    return Miniature({n: n * 1.125 for n in range(1, 5)}, groups=groups, tables=("APDD.csv",))


def apddv2(root: Path) -> Miniature:
    splits = {"test": (1, 2, 3), "valid": (4, 5), "train": (6, 7, 8)}
    for split, numbers in splits.items():
        write(root / "csvfiles" / f"{split}.csv", _apdd_rows(root, numbers), "gbk")
    write(root / "APDDv2-10023.csv", "filename,Total aesthetic score\r\n")  # on a scale of 100; not what is read
    found = {split: {n: n * 1.125 for n in numbers} for split, numbers in splits.items()}
    others = {"train": found["train"], "validation": found["valid"]}
    groups = {number: _APDD_GROUPS[number] for number in splits["test"]}
    return Miniature(found["test"], others, groups=groups, tables=("csvfiles/test.csv",))


def _example_class() -> Any:
    """tf.train.Example, declared again for protobuf's own encoder."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="mini", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        found = file.message_type.add(name=name)
        for field_name, place, kind, label, type_name in fields:
            found.field.add(name=field_name, number=place, type=kind, label=label, type_name=type_name or None)
        return found

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", 1, kinds.TYPE_BYTES, many, ""))
    message("FloatList", ("value", 1, kinds.TYPE_FLOAT, many, ""))
    message("Int64List", ("value", 1, kinds.TYPE_INT64, many, ""))
    message(
        "Feature",
        ("bytes_list", 1, kinds.TYPE_MESSAGE, one, ".mini.BytesList"),
        ("float_list", 2, kinds.TYPE_MESSAGE, one, ".mini.FloatList"),
        ("int64_list", 3, kinds.TYPE_MESSAGE, one, ".mini.Int64List"),
    )
    features = message("Features", ("feature", 1, kinds.TYPE_MESSAGE, many, ".mini.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=one, type_name=".mini.Feature")
    entry.options.map_entry = True
    message("Example", ("features", 1, kinds.TYPE_MESSAGE, one, ".mini.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mini.Example"))


EXAMPLE = _example_class()


def write_examples(path: Path, examples: Sequence[Mapping[str, object]]) -> None:
    """A TFRecord file by tensorboard's writer, of examples by protobuf's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        for values in examples:
            example = EXAMPLE()
            for name, value in values.items():
                feature = example.features.feature[name]
                if isinstance(value, bytes):
                    feature.bytes_list.value.append(value)
                elif isinstance(value, float):
                    feature.float_list.value.append(value)
                else:
                    feature.int64_list.value.extend(value)
            writer.write(example.SerializeToString())
        writer.flush()


def richhf(root: Path) -> Miniature:
    splits = {"test": (1, 2, 3), "dev": (4, 5), "train": (6, 7)}
    found = {}
    for split, numbers in splits.items():
        examples = []
        for number in numbers:
            uid = f"217d2759-4b57-479f-bc13-84408546{number:04d}"
            draw(root / "images" / f"{uid}.{'jpg' if number % 2 else 'png'}", number)
            examples.append(
                {
                    "filename": f"{split}/{uid}.png".encode(),
                    "aesthetics_score": number * 0.125,
                    "overall_score": 1 - number * 0.125,
                    "artifact_map": bytes(range(256)) * 40,
                    "prompt_misalignment_label": b"1 1 0",
                }
            )
        write_examples(root / f"{split}.tfrecord", examples)
        found[split] = {number: number * 0.125 for number in numbers}
    others = {"train": found["train"], "validation": found["dev"]}
    return Miniature(found["test"], others, tables=("test.tfrecord",))


def sac(root: Path) -> Miniature:
    root.mkdir(exist_ok=True)
    with closing(sqlite3.connect(root / "sac_public_2022_06_29.sqlite")) as db:
        db.executescript(
            "CREATE TABLE generations (id INTEGER, sid INTEGER, method INTEGER, prompt TEXT, verified INTEGER);"
            "CREATE TABLE images (id INTEGER, gid INTEGER, idx INTEGER);"
            "CREATE TABLE paths (iid INTEGER, path TEXT);"
            "CREATE TABLE ratings (sid INTEGER, iid INTEGER, rating INTEGER, verified INTEGER);"
        )
        for number in range(1, 5):
            name = f"13{number}_Monsters_Under_The_Bed_{number}.png"
            draw(root / "images" / name, number)
            db.execute("INSERT INTO images VALUES (?, ?, ?)", (50 - number, 7, number))
            db.execute("INSERT INTO paths VALUES (?, ?)", (50 - number, name))
            for rating in (number, number + 3, None):
                db.execute("INSERT INTO ratings VALUES (1, ?, ?, 1)", (50 - number, rating))
        db.execute("INSERT INTO images VALUES (99, 7, 9)")  # nobody rated it
        db.execute("INSERT INTO paths VALUES (99, 'unrated.png')")
        db.execute("INSERT INTO images VALUES (98, 7, 8)")  # somebody was asked and did not answer
        db.execute("INSERT INTO paths VALUES (98, 'unrated.png')")
        db.execute("INSERT INTO ratings VALUES (1, 98, NULL, 1)")
        db.commit()
    draw(root / "images" / "unrated.png", 25)
    return Miniature({n: n + 1.5 for n in range(1, 5)}, tables=("sac_public_2022_06_29.sqlite",))


def biq2021(root: Path) -> Miniature:
    splits = {"Test": (1, 2, 3), "Train": (4, 5)}
    found = {}
    for split, numbers in splits.items():
        rows = ["Image Name,MOS", *(f"ss0{n % 3 + 1} ({n}).jpg,{n / 10}" for n in numbers)]
        write(root / f"{split} (Images and MOS).csv", "\n".join(rows) + "\n")
        for n in numbers:
            draw(root / "Images" / f"ss0{n % 3 + 1} ({n}).{'JPG' if n == 2 else 'jpg'}", n)
        found[split] = {n: n / 10 for n in numbers}
    groups = {n: f"ss0{n % 3 + 1}" for n in splits["Test"]}
    tables = ("Test (Images and MOS).csv",)
    return Miniature(found["Test"], {"train": found["Train"]}, groups=groups, tables=tables)


MINIATURES: Mapping[str, Callable[[Path], Miniature]] = {
    make.__name__.replace("_", "-"): make
    for make in (live, live_realigned, csiq, tid2013, kadid, livec, koniq, spaq, agiqa, ava, aadb, para, eva, baid,
                 apdd, apddv2, richhf, sac, biq2021)
}  # fmt: skip
