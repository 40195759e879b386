"""``declip i2t``: from published data sets to candidates; and what is said of a table."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from declip_sdk.cli import run
from declip_sdk.cli.i2t import command, filtering
from declip_training.i2t.candidates import hash_of, read_candidates
from declip_training.i2t.decoupling import Limits
from declip_training.i2t.pictures import file_sha256
from declip_training.i2t.records import COLUMNS, Record, read_records, write_records
from declip_training.i2t.sources import FORMATS

from .command import DECLIP
from .conftest import save_picture

RICH = (
    "The image is slightly blurry with visible noise in the shadows; the colours are washed out, the lighting is harsh "
    "and the composition is unbalanced."
)
POOR = "Two dogs play in a park."
PERCEPTUAL = (
    "The photo is sharp and well lit, with soft warm light, muted colours and a shallow depth of field; "
    "the mood is calm."
)
SEMANTIC = "A brown dog runs across a meadow beside a lake while two children watch from a wooden bench."


def conversations(*pairs: tuple[str, str]) -> str:
    entries = [
        {
            "id": str(n),
            "image": image,
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}],
        }
        for n, (image, text) in enumerate(pairs)
    ]
    return json.dumps(entries)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Annotations of three data sets beside their images."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["coco/1.jpg", "wikiart/2.jpg", "3.jpg", "4.jpg"]):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        save_picture(tmp_path / "images" / name, seed)
    (tmp_path / "sg.json").write_text(
        conversations(("coco/1.jpg", RICH), ("wikiart/2.jpg", RICH), ("coco/1.jpg", POOR), ("coco/9.jpg", RICH))
    )
    (tmp_path / "dpc").mkdir()
    (tmp_path / "dpc" / "3.json").write_text(json.dumps({"raw_comments": [POOR, "", RICH]}))
    (tmp_path / "dpc" / "4.json").write_text("{")
    (tmp_path / "mine.csv").write_text(f'photo,words\n4.jpg,"{POOR}"\n4.jpg,"{RICH}, with bokeh"\n')
    return tmp_path


SOURCES = ["--source", "sharegpt4v", "sg.json", "images", "--source", "ava-comments", "dpc", "images"]
MINE = ["--source", "table", "mine.csv", "images", "--image-column", "photo", "--text-column", "words"]


def test_filter_keeps_what_is_rich_and_reports_as_table_1(world: Path, capfd: Any) -> None:
    assert run(["i2t", "filter", *SOURCES, *MINE, "-o", "c.jsonl"]) == 0
    out, err = capfd.readouterr()
    rows = [line.split("  ") for line in out.splitlines()]
    table = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert table == [
        ["source", "texts", "images", "kept", "of images", "image types (kept of images)"],
        ["ShareGPT4V", "3", "2", "2", "100%", "Art 1 of 1, Natural 1 of 1"],
        ["AVA-Comments", "2", "1", "1", "100%", "Natural 1 of 1"],
        ["mine", "2", "1", "1", "100%", "unknown 1 of 1"],
        ["all", "7", "4", "4", "100%", "Art 1 of 1, Natural 2 of 2, unknown 1 of 1"],
    ]
    assert "declip: ShareGPT4V: 1 x missing image: sg.json entry 4 (coco/9.jpg)\n" in err
    assert "declip: AVA-Comments: 1 x unreadable file: 4.json\n" in err
    assert "declip: AVA-Comments: 1 x empty text: 3.json\n" in err
    assert "4 candidates with at least 7 of 1," in err
    kept = read_candidates(world / "c.jsonl")
    assert [c.source_text for c in kept] == [RICH, RICH, RICH, f"{RICH}, with bokeh"]
    assert kept[0].image == str(world / "images" / "coco" / "1.jpg")


def test_filter_takes_other_rules(world: Path, capfd: Any) -> None:
    (world / "v.txt").write_text("dog\npark\n")
    options = ["--vocabulary", "v.txt", "--minimum", "2", "--texts", "each", "--type", "coco/*=Photo"]
    assert run(["i2t", "filter", *SOURCES, *options, "-o", "c.jsonl"]) == 0
    assert [(c.source_text, c.image_type) for c in read_candidates(world / "c.jsonl")] == [
        (POOR, "Photo"),
        (POOR, "Natural"),
    ]
    assert "Art 0 of 1, Photo 1 of 2" in (out := capfd.readouterr().out)  # each text stands for itself
    assert "kept of texts" in out


def test_a_source_that_gives_nothing_is_in_the_report(world: Path, capfd: Any) -> None:
    (world / "q.json").write_text(conversations(("none.jpg", RICH)))
    assert run(["i2t", "filter", "--source", "q-instruct", "q.json", "images", *SOURCES, "-o", "c.jsonl"]) == 0
    assert capfd.readouterr().out.splitlines()[1].split() == ["Q-Instruct", "0", "0", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "q-bench", "sg.json", "images"], "'q-bench' is not one of"),
        (["--source", "sharegpt4v", "none.json", "images"], "none.json does not exist"),
        (["--source", "sharegpt4v", "sg.json", "none"], "none is no folder"),
        (["--source", "table", "sg.json", "images"], "is not a table"),
        (["--source", "table", "mine.csv", "images"], "has no column 'image'"),
        ([*SOURCES, "--vocabulary", "none.txt"], "the vocabulary none.txt cannot be read"),
        ([*SOURCES, "--type", "coco"], "--type coco: give a pattern and a type"),
        ([*SOURCES, "-o", "no/c.jsonl"], "the folder no does not exist"),
        ([*SOURCES, "-o", "sg.json"], "sg.json is read, so it will not be overwritten"),
        ([*SOURCES, "--vocabulary", "mine.csv", "-o", "mine.csv"], "mine.csv is read, so it will not be overwritten"),
        ([*SOURCES, "-o", "c.parquet"], "c.parquet will hold JSON lines. Give it a name that ends in .jsonl"),
        ([], "Missing option '--source'"),
    ],
)
def test_filter_names_each_mistake_in_one_line(arguments: list[str], message: str, world: Path, capfd: Any) -> None:
    before = (world / "sg.json").read_text()
    assert run(["i2t", "filter", "-o", "c.jsonl", *arguments]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (world / "c.jsonl").exists()
    assert (world / "sg.json").read_text() == before


@pytest.fixture
def table(world: Path) -> Path:
    records = [
        Record(
            f"r{n}",
            f"images/{name}",
            PERCEPTUAL,
            SEMANTIC,
            source,
            RICH,
            file_sha256(world / "images" / name),
            hash_of(RICH),
            "Natural",
        )
        for n, (name, source) in enumerate([("coco/1.jpg", "ShareGPT4V"), ("3.jpg", "AVA-Comments"), ("4.jpg", "mine")])
    ]
    write_records(world / "t.parquet", records, {"model": "m"})
    return world / "t.parquet"


def test_check_counts_what_is_wrong_and_ends_with_1(table: Path, capfd: Any) -> None:
    assert run(["i2t", "check", "t.parquet"]) == 0
    assert capfd.readouterr().err == "declip: 3 rows, 0 problems\n"
    save_picture(table.parent / "images" / "3.jpg", 9)
    (table.parent / "images" / "4.jpg").unlink()
    assert run(["i2t", "check", "t.parquet"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "declip: t.parquet: 1 x image does not match its hash: row 2 (r1): images/3.jpg",
        "declip: t.parquet: 1 x image cannot be opened: row 3 (r2): images/4.jpg",
        "declip: 3 rows, 2 problems",
    ]
    assert run(["i2t", "check", "t.parquet", "--no-images"]) == 0
    assert run(["i2t", "check", "t.parquet", "--no-images", "--decoupling", "semantic_minimum=1"]) == 1
    assert "3 x texts are not decoupled" in capfd.readouterr().err
    assert run(["i2t", "check", "none.parquet"]) == 2


def test_stats_for_people_and_programs(table: Path, capfd: Any) -> None:
    assert run(["i2t", "stats", "t.parquet"]) == 0
    out = capfd.readouterr().out
    for expected in ("ShareGPT4V", "depth and space", "100%", "model: m", "shallow depth of field 3"):
        assert expected in out
    assert run(["i2t", "stats", "t.parquet", "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["records"], found["images"]) == (3, 3)
    assert {"source": "mine", "image_type": "Natural", "records": 1} in found["by_source"]
    assert found["provenance"] == {"model": "m"}
    assert found["perceptual"]["perceptual"] > 0.8 > 0.2 > found["perceptual"]["semantic"]


def test_heic_is_read_where_pillow_heif_is_installed(table: Path, tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    photo = tmp_path / "images" / "4.heic"
    with Image.open(tmp_path / "images" / "4.jpg") as image:
        pillow_heif.from_pillow(image).save(photo)
    records = [replace(record, image="images/4.heic", image_sha256="") for record in read_records(table)[:1]]
    write_records(table, records)
    for verb in (["check", "t.parquet"], ["show", "t.parquet", "-o", "page.html"]):
        # in a process of its own: what Pillow reads, it reads until the process ends
        done = subprocess.run([*DECLIP, "i2t", *verb], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")


def test_show_makes_one_page(table: Path, capfd: Any) -> None:
    assert run(["i2t", "show", "t.parquet", "-o", "page.html"]) == 0
    reader = _Images()
    reader.feed((table.parent / "page.html").read_text(encoding="utf-8"))
    assert len(reader.sources) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.sources)
    assert run(["i2t", "show", "t.parquet", "-o", "one.html", "--source", "mine"]) == 0
    assert (table.parent / "one.html").read_text().count("<article>") == 1
    assert run(["i2t", "show", "t.parquet", "-o", "two.html", "--number", "2"]) == 0
    assert (table.parent / "two.html").read_text().count("<article>") == 2
    (table.parent / "images" / "4.jpg").unlink()
    capfd.readouterr()
    assert run(["i2t", "show", "t.parquet", "-o", "page.html"]) == 1
    assert "3 records in page.html, 1 image could not be opened" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "page.png"], "Let it end in .html"),
        (["-o", "page.html", "--source", "x"], "t.parquet has: AVA-Comments, ShareGPT4V, mine"),
        (["-o", "no/page.html"], "the folder no does not exist"),
    ],
)
def test_show_names_each_mistake(arguments: list[str], message: str, table: Path, capfd: Any) -> None:
    assert run(["i2t", "show", "t.parquet", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_nothing_heavy_is_imported_for_help() -> None:
    program = (
        "import sys\nfrom declip_sdk.cli import run\nassert run(['i2t', 'relabel', '--help']) == 0\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([DECLIP[0], "-c", program], capture_output=True, text=True, check=True)
    assert not {"openai", "pyarrow", "torch", "declip_training"} & set(done.stderr.split())


DOCUMENT = Path(__file__).parents[2] / "docs" / "i2t.md"


def test_the_documentation_names_options_and_limits_as_they_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    options = {o for verb in command.commands.values() for p in verb.params for o in p.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options
    limits = {name: float(value) for name, value in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text, re.MULTILINE)}
    assert limits == vars(Limits())
    assert set(COLUMNS) <= set(re.findall(r"`(\w+)`", text))
    assert all(f"`{name}`" in text for name in FORMATS)
    assert tuple(FORMATS) == filtering.FORMATS  # the command line names them without importing anything large


def test_hostile_names_cannot_steer_the_terminal(table: Path, capfd: Any) -> None:
    record = Record("a\x1b[31m", "im\x1bage.jpg", PERCEPTUAL, SEMANTIC, "so\x1burce")
    write_records(table, [record, replace(record, id="b")])
    assert run(["i2t", "check", "t.parquet"]) == 1
    assert run(["i2t", "stats", "t.parquet"]) == 0
    captured = capfd.readouterr()
    assert "\x1b" not in captured.out + captured.err
