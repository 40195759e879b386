from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime.backends.fake import FakeBackend
from declip_runtime.errors import BackendExecutionError
from declip_runtime.images import open_image
from declip_sdk import Scorer
from declip_sdk.cli import run
from declip_sdk.cli.heif import register_heif

from . import command
from .command import FAKE, TINY, in_terminal, start
from .conftest import save_picture

JSONL = [*FAKE, "--format", "jsonl"]
GOOD = ["a.jpg", "b.PNG", "c.webp"]
MADE_UP = b"declip: these scores are made up by the fake backend, for testing pipelines only\n"
posix = pytest.mark.skipif(os.name != "posix", reason="file names of bytes, signals and terminals of POSIX")


def rows(text: bytes | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def names(text: bytes | str) -> list[str]:
    return [Path(row["image"]).name for row in rows(text)]


# --- what is scored


def test_a_folder_is_walked_and_its_subfolders_on_request(photos: Path, capfdbinary: Any) -> None:
    assert run(["score", *JSONL, str(photos)]) == 1  # one is broken
    assert names(capfdbinary.readouterr().out) == ["a.jpg", "b.PNG", "broken.jpg", "c.webp"]
    assert run(["score", *JSONL, "-r", str(photos)]) == 1
    assert names(capfdbinary.readouterr().out) == ["a.jpg", "b.PNG", "broken.jpg", "c.webp", "d.jpg"]


def test_a_named_file_is_tried_whatever_it_is_called(photos: Path, capfdbinary: Any) -> None:
    picture = (photos / "a.jpg").rename(photos / "a.dat")
    assert run(["score", *JSONL, str(picture), str(photos / ".hidden.jpg")]) == 0
    assert names(capfdbinary.readouterr().out) == ["a.dat", ".hidden.jpg"]


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where pillow-heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    register_heif.cache_clear()
    yield
    register_heif.cache_clear()


def test_pictures_of_stereo_cameras_and_phones_are_scored(tmp_path: Path, capfd: Any) -> None:
    left, right = (Image.new("RGB", (60, 40), colour) for colour in ("red", "blue"))
    left.save(tmp_path / "a.mpo", format="MPO", save_all=True, append_images=[right])
    assert run(["score", *FAKE, "--format", "csv", str(tmp_path)]) == 0
    assert "a.mpo" in capfd.readouterr().out


@pytest.mark.usefixtures("without_heif")
def test_photos_that_nothing_here_decodes_are_mentioned(photos: Path, capfdbinary: Any) -> None:
    for name in ("1.heic", "2.HEIC", "3.dng", "4.HIF", "5.NRW", "6.x3f"):
        (photos / name).touch()
    (photos / "broken.jpg").unlink()
    assert run(["score", *FAKE, str(photos)]) == 0
    error = capfdbinary.readouterr().err
    assert b"2 .heic, 1 .dng, 1 .hif, 1 .nrw, 1 .x3f" in error
    assert b"pip install pillow-heif" in error


def test_heic_is_scored_where_pillow_heif_is_installed(photos: Path, tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("pillow_heif")
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:, :20] = 255  # white at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone held upright stores it
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    program = (
        "import sys, pillow_heif; from PIL import Image; pillow_heif.register_heif_opener();"
        "i = Image.open(sys.argv[1]); i.save(sys.argv[2], exif=i.getexif().tobytes(), quality=95)"
    )
    turned.save(tmp_path / "turned.png", exif=exif)
    heic = photos / "IMG_0001.HEIC"
    subprocess.run([sys.executable, "-c", program, tmp_path / "turned.png", heic], check=True)
    (photos / "broken.jpg").unlink()
    assert run(["score", *JSONL, str(photos)]) == 0
    assert "IMG_0001.HEIC" in names(capfd.readouterr().out)
    pixels = np.asarray(open_image(heic))
    assert pixels.shape == (48, 64, 3)
    assert pixels[:, :16].mean() > 240
    assert pixels[:, 24:].mean() < 15


def test_a_folder_without_images_is_wrong_use(tmp_path: Path, capfdbinary: Any) -> None:
    assert run(["score", *FAKE, str(tmp_path)]) == 2
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert b"no images" in captured.err
    assert b"looked for .avif" in captured.err


@pytest.mark.usefixtures("without_heif")
def test_a_folder_of_other_things_is_told_why_it_has_no_images(tmp_path: Path, capfdbinary: Any) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "IMG_1.HEIC").touch()
    assert run(["score", *FAKE, str(tmp_path)]) == 2
    error = capfdbinary.readouterr().err
    assert error.count(b"\n") == 1
    assert b"1 .heic (formats that cannot be decoded here: export them as JPEG, or for HEIC run: pip " in error
    assert b"install pillow-heif); 1 subfolder (-r enters" in error
    assert b"looked for" not in error


@posix
def test_what_is_passed_over_is_counted(photos: Path, tmp_path: Path, capfdbinary: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    save_picture(tmp_path / "elsewhere" / "e.jpg", 7)
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    (photos / "broken.jpg").unlink()
    for option, subfolders in (([], b"1 subfolder (-r enters subfolders); "), (["-r"], b"")):
        assert run(["score", *JSONL, *option, str(photos)]) == 0
        captured = capfdbinary.readouterr()
        assert captured.err == MADE_UP + (
            b"declip: passed over: " + subfolders + b"1 link to folders (links are entered when they are named);"
            b" 1 hidden image (hidden files are scored when they are named)\n"
        )
        assert b"e.jpg" not in captured.out
    assert run(["score", *JSONL, str(photos / "link"), str(photos / ".hidden.jpg")]) == 0
    captured = capfdbinary.readouterr()
    assert (names(captured.out), captured.err) == (["e.jpg", ".hidden.jpg"], MADE_UP)


def test_the_scores_are_those_of_the_library(photos: Path, capfdbinary: Any) -> None:
    paths = [str(photos / name) for name in GOOD]
    assert run(["score", *JSONL, *paths]) == 0
    with Scorer(TINY, backend="fake") as scorer:
        expected = scorer.score(paths)
        made = {"error": None, "scored_with": scorer.identity}
    for row, score in zip(rows(capfdbinary.readouterr().out), expected, strict=True):
        assert row == {"image": score.image, **made} | {
            n: round(v, 6) for n, v in zip(score.names, score.values, strict=True)
        }


@pytest.mark.parametrize(
    ("option", "changed"),
    [(["--views", "3"], {"views": 3, "decode": "exact"}), (["--exact"], {"decode": "exact"}), ([], {})],
)
def test_options_reach_the_scorer(photos: Path, capfdbinary: Any, option: list[str], changed: dict[str, Any]) -> None:
    assert run(["score", *FAKE, "--format", "json", *option, str(photos / "a.jpg")]) == 0
    document = json.loads(capfdbinary.readouterr().out)
    with Scorer(TINY, backend="fake") as scorer:
        expected = {"name": scorer.manifest.name, **scorer.identity, **changed}
    assert {k: v for k, v in document.items() if k != "images"} == expected
    assert len(document["images"]) == 1


def test_decoding_on_a_gpu_is_asked_for_alone_and_fails_where_there_is_none(
    photos: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["score", *FAKE, "--exact", "--gpu-decode", str(photos)]) == 2
    assert "Give one of them" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert run(["score", *FAKE, "--gpu-decode", str(photos)]) == 2
    said = capfd.readouterr()
    assert "pip install 'declip-sdk[nvimagecodec]'" in said.err
    assert said.out == ""


# --- formats


@pytest.mark.parametrize("options", [[], ["--views", "3", "--exact"]])
def test_lines_and_rows_say_what_scored_them(photos: Path, capfdbinary: Any, options: list[str]) -> None:
    """What the JSON document says once; a failed image's too, and columns of before keep their places."""
    paths = [str(photos / "a.jpg"), str(photos / "broken.jpg")]
    outputs = {}
    for format_ in ("json", "jsonl", "csv"):
        assert run(["score", *FAKE, "--format", format_, *options, *paths]) == 1
        outputs[format_] = capfdbinary.readouterr().out.decode()
    document = json.loads(outputs["json"])
    identity = {key: value for key, value in document.items() if key not in ("name", "images")}
    assert list(identity) == ["engine", "backend", "precision", "decode", "views", "preprocessing"]
    assert identity["views"] == (3 if options else 1)
    assert [row["scored_with"] for row in rows(outputs["jsonl"])] == [identity] * 2
    with Scorer(TINY, backend="fake") as scorer:
        assert outputs["csv"].splitlines()[0] == ",".join(["image", *scorer.names, "error", "scored_with"])
    for record in csv.DictReader(io.StringIO(outputs["csv"])):
        said = dict(part.split("=") for part in record["scored_with"].split(" "))
        assert said == {key: str(value) for key, value in identity.items()}


def test_a_failed_image_has_null_and_its_reason_in_every_format(photos: Path, capfdbinary: Any) -> None:
    broken = str(photos / "broken.jpg")
    texts = {}
    for format_ in ("jsonl", "json", "csv", "table"):
        assert run(["score", *FAKE, "--format", format_, broken]) == 1
        captured = capfdbinary.readouterr()
        texts[format_] = captured.out.decode()
        assert b"1 of 1 image failed" in captured.err
    for row in (*rows(texts["jsonl"]), *json.loads(texts["json"])["images"]):
        assert row["error"].startswith("ImageDecodeError: ")
        assert all(value is None for name, value in row.items() if name not in ("image", "error", "scored_with"))
    (record,) = csv.DictReader(io.StringIO(texts["csv"]))
    assert record["error"].startswith("ImageDecodeError: ")
    assert all(value == "" for name, value in record.items() if name not in ("image", "error", "scored_with"))
    assert "1 failed" in texts["table"]
    assert "not an image" in texts["table"]
    assert texts["table"].count("broken.jpg") == 1


@posix
def test_any_file_name_survives_in_every_format(tmp_path: Path, capfdbinary: Any) -> None:
    strange = [
        "new\nline.png",
        'quo"te, comma.png',
        "雪山 🏔.png",
        "tab\t.png",
        os.fsdecode(b"latin\xe9.png"),
        "[red]x.png",
        "old\rmac.png",
    ]
    paths = [str(save_picture(tmp_path / "plain.png", i).rename(tmp_path / n)) for i, n in enumerate(strange)]
    assert run(["score", *FAKE, "--format", "jsonl", *paths]) == 0
    assert [row["image"] for row in rows(capfdbinary.readouterr().out)] == paths
    assert run(["score", *FAKE, "--format", "json", *paths]) == 0
    assert [row["image"] for row in json.loads(capfdbinary.readouterr().out)["images"]] == paths
    assert run(["score", *FAKE, "--format", "csv", *paths]) == 0
    captured = capfdbinary.readouterr()
    assert b"1 file name not in UTF-8: the CSV has the bytes as they are" in captured.err
    text = captured.out.decode("utf-8", "surrogateescape")
    assert [record["image"] for record in csv.DictReader(io.StringIO(text, newline=""))] == paths
    assert '/old\rmac.png"' in text  # quoted, or a reader takes it for the end of the record
    assert run(["score", *FAKE, "--format", "table", *paths]) == 0
    table = capfdbinary.readouterr().out.decode()
    for shown in (
        "new\\nline.png",
        'quo"te, comma.png',
        "雪山 🏔.png",
        "tab\\t.png",
        "latin\\xe9.png",
        "[red]x.png",
        "old\\rmac",
    ):
        assert sum(shown in line for line in table.splitlines()) == 1


def test_a_pipe_gets_csv(photos: Path, capfd: Any) -> None:
    assert run(["score", *FAKE, str(photos)]) == 1
    records = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [Path(r["image"]).name for r in records] == ["a.jpg", "b.PNG", "broken.jpg", "c.webp"]


def test_machine_formats_keep_the_order_and_sort_on_request(photos: Path, capfdbinary: Any) -> None:
    with Scorer(TINY, backend="fake") as scorer:
        name = scorer.names[-1]
        scores = scorer.score([photos / n for n in GOOD])
    best_first = [Path(s.image).name for s in sorted(scores, key=lambda s: -s[name])]
    assert best_first != GOOD
    assert run(["score", *JSONL, "--sort", name, str(photos)]) == 1
    assert names(capfdbinary.readouterr().out) == [*best_first, "broken.jpg"]


def test_min_keeps_what_reaches_it_and_what_failed(photos: Path, capfdbinary: Any) -> None:
    with Scorer(TINY, backend="fake") as scorer:
        first, last = scorer.names[0], scorer.names[-1]
        scores = scorer.score([photos / n for n in GOOD])
    bound = float(sorted(scores[last])[1]) - 1e-6
    kept = [Path(s.image).name for s in scores if s[last] >= bound]
    assert len(kept) == 2
    assert run(["score", *JSONL, "--min", f"{last}={bound}", "--min", f"{first}=0", str(photos)]) == 1
    assert sorted(names(capfdbinary.readouterr().out)) == sorted([*kept, "broken.jpg"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sort", "beauty"], "there is no such score"),
        (["--min", "beauty=0.4"], "there is no score 'beauty'"),
        (["--min", "{name}"], "--min {name}=0.4"),
        (["--min", "{name}=high"], "--min {name}=0.4"),
        (["--min", "{name}=nan"], "--min {name}=0.4"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--backend", "abacus"], "abacus"),
        (["--precision", "fp4"], "'fp4' is not one of"),
        (["--views", "0"], "0 is not in the range"),
        (["--views", "101"], "101 is not in the range 1<=x<=100"),
        (["--engine", "no.engine"], "no.engine"),
        (["-o", "scores.xls"], ".csv"),
        (["-"], "Give it alone"),
        (["--frobnicate"], "No such option"),
        (["--engine", ""], "path of the engine is empty"),
        ([""], "one of the paths is empty"),
        (["--top", "0"], "0 is not in the range"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    photos: Path, capfdbinary: Any, arguments: list[str], words: str
) -> None:
    with Scorer(TINY, backend="fake") as scorer:
        name = scorer.names[0]
    assert run(["score", *FAKE, str(photos), *(a.format(name=name) for a in arguments)]) == 2
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert captured.err.startswith(b"declip: ")
    assert captured.err.count(b"\n") == 1
    assert words.format(name=name) in captured.err.decode()


# --- files


@pytest.mark.parametrize("name", ["s.csv", "s.json", "s.jsonl", "s.ndjson", "s.txt"])
def test_the_extension_of_the_output_picks_its_format(
    photos: Path, tmp_path: Path, capfdbinary: Any, name: str
) -> None:
    output = tmp_path / name
    output.write_text("older")
    assert run(["score", *FAKE, "-o", str(output), str(photos)]) == 1
    text = output.read_text("utf-8")
    assert capfdbinary.readouterr().out == b""
    found = {
        ".csv": lambda: [Path(r["image"]).name for r in csv.DictReader(io.StringIO(text))],
        ".json": lambda: [Path(r["image"]).name for r in json.loads(text)["images"]],
        ".jsonl": lambda: names(text),
        ".ndjson": lambda: names(text),
        ".txt": lambda: [n for n in ("a.jpg", "b.PNG", "broken.jpg", "c.webp") if n in text],
    }[output.suffix]()
    assert found == ["a.jpg", "b.PNG", "broken.jpg", "c.webp"]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [name]  # nothing half-written beside it


def test_a_file_that_cannot_be_written_is_named(photos: Path, tmp_path: Path, capfdbinary: Any) -> None:
    for target in (tmp_path, tmp_path / "no" / "s.csv", Path("/proc/s.csv"), tmp_path / ("x" * 300 + ".csv")):
        assert run(["score", *FAKE, "--format", "csv", "-o", str(target), str(photos)]) == 2
        error = capfdbinary.readouterr().err
        assert str(target).encode() in error
        assert error.count(b"\n") == 1


@pytest.mark.parametrize("length", [230, 254])
def test_a_name_may_be_as_long_as_the_system_allows(photos: Path, tmp_path: Path, length: int) -> None:
    output = tmp_path / ("x" * length)
    assert run(["score", *FAKE, "--format", "csv", "-o", str(output), str(photos)]) == 1
    assert output.read_text().startswith("image,")
    assert [p for p in tmp_path.iterdir() if p.is_file()] == [output]


@posix
def test_a_link_stays_and_a_device_is_not_replaced(photos: Path, tmp_path: Path, capfdbinary: Any) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    assert run(["score", *FAKE, "-o", str(tmp_path / "link.csv"), str(photos)]) == 1
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("image,")
    assert run(["score", *FAKE, "--format", "csv", "-o", "/dev/null", str(photos)]) == 1
    assert Path("/dev/null").is_char_device()


@posix
@pytest.mark.parametrize("place", ["-", "/dev/stdout"])
@pytest.mark.parametrize(("format_", "begin"), [([], b"image,"), (["--format", "json"], b"{")])
def test_standard_output_has_names(photos: Path, place: str, format_: list[str], begin: bytes) -> None:
    process = start("score", *FAKE, *format_, "-o", place, photos / "a.jpg")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith(begin)
    assert b"a.jpg" in out


@posix
def test_a_pipe_in_the_place_of_a_file_is_written_to(photos: Path) -> None:
    """As in ``declip score photos -o >(wc -l)``."""
    reading, writing = os.pipe()
    process = start("score", *JSONL, "-o", f"/dev/fd/{writing}", photos / "a.jpg", pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert names(stream.read()) == ["a.jpg"]
    assert process.wait(timeout=60) == 0


def test_a_photo_is_not_overwritten(photos: Path, capfdbinary: Any) -> None:
    (photos / "other.jpg").write_bytes(b"precious")
    picture = (photos / "a.jpg").rename(photos / "a.dat")
    engine = Path(shutil.copy(TINY, photos / "tiny.engine"))
    before = {path: path.read_bytes() for path in photos.iterdir() if path.is_file()}
    for paths, output in (
        ([photos], photos / "b.PNG"),
        ([picture], picture),
        ([picture], photos / "sub" / ".." / "a.dat"),
        ([picture], photos / "other.jpg"),  # not even one that is not scored
        ([picture], engine),
    ):
        usual = ["score", "--engine", str(engine), "--backend", "fake"]
        assert run([*usual, *map(str, paths), "--format", "csv", "-o", str(output)]) == 2
        captured = capfdbinary.readouterr()
        assert b"will not be overwritten. Name another file" in captured.err
        assert captured.err.count(b"\n") == 1
    assert {path: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before


@posix
def test_the_mode_of_a_file_is_kept_and_a_protected_one_stays(photos: Path, tmp_path: Path, capfdbinary: Any) -> None:
    output = tmp_path / "scores.csv"
    output.write_text("older")
    output.chmod(0o444)
    assert run(["score", *FAKE, "-o", str(output), str(photos / "a.jpg")]) == 2
    assert b"scores.csv is write-protected" in capfdbinary.readouterr().err
    assert output.read_text() == "older"
    output.chmod(0o606)
    assert run(["score", *FAKE, "-o", str(output), str(photos / "a.jpg")]) == 0
    assert output.read_text().startswith("image,")
    assert output.stat().st_mode & 0o777 == 0o606


# --- what standard error says


def test_scores_that_are_made_up_are_said_to_be(photos: Path, capfdbinary: Any) -> None:
    assert run(["score", *JSONL, str(photos / "a.jpg")]) == 0
    assert capfdbinary.readouterr().err == MADE_UP
    assert run(["score", "--engine", str(TINY), "--format", "jsonl", str(photos / "a.jpg")]) == 0
    assert capfdbinary.readouterr().err == b""


def test_a_few_failures_are_named_and_many_counted(photos: Path, capfdbinary: Any) -> None:
    for number, named in ((1, True), (5, True), (6, False)):
        missing = [f"missing{i}.jpg" for i in range(number)]
        assert run(["score", *FAKE, str(photos / "a.jpg"), *missing]) == 1
        lines = capfdbinary.readouterr().err.decode().splitlines(keepends=True)
        assert lines[0].encode() == MADE_UP
        assert lines[1:-1] == [f"declip: '{name}' does not exist. Check the path.\n" for name in missing if named]
        assert lines[-1] == f"declip: {number} of {number + 1} images failed\n"


def test_a_minimum_that_nothing_reaches_is_said(photos: Path, capfdbinary: Any) -> None:
    bound = ["--min", "quality=0.1", "--min", "quality=1.5"]
    for paths, said in (([photos / "a.jpg"], True), ([photos / "broken.jpg"], False)):
        run(["score", *FAKE, *bound, *map(str, paths)])
        error = capfdbinary.readouterr().err
        assert (b"no image reaches --min quality=0.1 --min quality=1.5\n" in error) == said
    assert run(["score", *FAKE, *bound[:2], str(photos / "a.jpg")]) == 0
    assert b"reaches" not in capfdbinary.readouterr().err


def test_what_pillow_thinks_of_metadata_is_not_said(photos: Path, capfdbinary: Any) -> None:
    data = (photos / "a.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01"  # ends within its first entry
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (photos / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        open_image(photos / "a.jpg")
    process = start("score", *JSONL, photos / "a.jpg")
    out, err = process.communicate(timeout=60)
    assert (names(out), err) == (["a.jpg"], MADE_UP)


@posix
def test_advice_is_in_words_of_the_command_line(photos: Path, capfdbinary: Any) -> None:
    os.mkfifo(photos / "max_pixels=.jpg")
    for option, name, advice in (
        (["--max-pixels", "9"], "a.jpg", "more than --max-pixels 9 allows. Raise --max-pixels if"),
        ([], "max_pixels=.jpg", "max_pixels=.jpg' is a pipe, socket or device, not a file. Save it to a file"),
    ):
        assert run(["score", *JSONL, *option, str(photos / name)]) == 1
        (row,) = rows(capfdbinary.readouterr().out)
        assert advice in row["error"]


# --- as a co-process


@pytest.mark.parametrize(("option", "separator"), [([], b"\n"), (["-0"], b"\0")])
def test_each_path_on_standard_input_is_answered_at_once(photos: Path, option: list[str], separator: bytes) -> None:
    process = start("score", *FAKE, "--format", "jsonl", *option, "-")
    assert process.stdin
    assert process.stdout
    for name in (*GOOD, "broken.jpg", "missing.jpg", "sub"):
        process.stdin.write(os.fsencode(photos / name) + separator)
        process.stdin.flush()
        row = json.loads(process.stdout.readline())  # would hang here if it waited for more
        assert row["image"] == str(photos / name)
        assert (row["error"] is None) == (name in GOOD)
    process.stdin.write(os.fsencode(photos / "a.jpg"))  # a last line need not end
    rest, _ = process.communicate(timeout=30)
    assert names(rest) == ["a.jpg"]
    assert process.returncode == 1


@posix
def test_a_path_may_arrive_in_pieces_and_hold_a_newline(tmp_path: Path) -> None:
    path = os.fsencode(save_picture(tmp_path / "new.png", 1).rename(tmp_path / "new\nline.png"))
    process = start("score", *JSONL, "-0", "-")
    assert process.stdin
    process.stdin.write(path[:5])
    process.stdin.flush()
    time.sleep(0.1)
    out, _ = process.communicate(path[5:] + b"\0" + path + b"\0", timeout=30)
    assert [row["image"] for row in rows(out)] == [os.fsdecode(path)] * 2
    assert process.returncode == 0


@pytest.mark.parametrize(("end", "option"), [(b"\n", []), (b"\r\n", []), (b"\0", ["-0"])])
def test_every_line_has_an_answer_the_empty_one_too(photos: Path, end: bytes, option: list[str]) -> None:
    good = os.fsencode(photos / "a.jpg")
    process = start("score", *JSONL, *option, "-")
    out, _ = process.communicate(end.join([good, b"", good, b"", b""]), timeout=30)
    assert [row["image"] for row in rows(out)] == [str(photos / "a.jpg"), "", str(photos / "a.jpg"), ""]
    errors = [row["error"] for row in rows(out)]
    assert errors[0] is errors[2] is None
    assert errors[1] == errors[3] == "ImageNotFoundError: the path is empty. Give the path of a photo."
    assert process.returncode == 1


def test_the_first_line_may_have_a_byte_order_mark_and_a_blank_one_is_named(photos: Path) -> None:
    mark, good = b"\xef\xbb\xbf", os.fsencode(photos / "a.jpg")
    out, _ = start("score", *JSONL, "-").communicate(mark + good + b"\r\n   \n", timeout=30)
    assert [row["image"] for row in rows(out)] == [str(photos / "a.jpg"), "   "]
    assert [row["error"] for row in rows(out)] == [
        None,
        "ImageNotFoundError: the path is empty. Give the path of a photo.",
    ]


@pytest.mark.parametrize("given", [b"", b"\n\n", b"  \r\n", b"\xef\xbb\xbf"])
def test_a_list_without_paths_is_wrong_use(given: bytes) -> None:
    process = start("score", *FAKE, "-")
    out, err = process.communicate(given, timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"declip: no paths on standard input.")
    assert err.count(b"\n") == 1


def test_a_co_process_that_is_closed_did_nothing_wrong() -> None:
    process = start("score", *JSONL, "-")
    assert process.communicate(b"", timeout=60) == (b"", MADE_UP)
    assert process.returncode == 0


def test_blank_lines_in_a_list_are_skipped(photos: Path) -> None:
    process = start("score", *FAKE, "-")
    out, _ = process.communicate(b"\n%b\n \n\n" % os.fsencode(photos / "a.jpg"), timeout=60)
    assert process.returncode == 0
    assert len(out.splitlines()) == 2


def test_a_folder_among_the_lines_gets_advice_for_the_command_line(photos: Path) -> None:
    out, _ = start("score", *JSONL, "-").communicate(os.fsencode(photos), timeout=30)
    (row,) = rows(out)
    assert "is a folder" in row["error"]
    assert "declip score" not in row["error"]


@pytest.mark.parametrize("option", [["--min", "quality=0.4"], ["--sort", "quality"], ["--top", "3"]])
def test_what_would_leave_a_path_unanswered_is_refused_to_a_co_process(option: list[str], capfdbinary: Any) -> None:
    assert run(["score", *JSONL, *option, "-"]) == 2
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert option[0].encode() in captured.err
    assert b"answers every path" in captured.err


@posix
def test_a_file_still_takes_what_is_refused_to_a_co_process(photos: Path, tmp_path: Path) -> None:
    process = start("score", *FAKE, "--top", "1", "-o", tmp_path / "best.jsonl", "-")
    process.communicate(b"".join(os.fsencode(photos / name) + b"\n" for name in GOOD), timeout=30)
    assert process.returncode == 0
    assert len(rows((tmp_path / "best.jsonl").read_bytes())) == 1


# --- interruption


@posix
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]
)
@pytest.mark.parametrize("format_", ["csv", "json", "table"])
def test_a_signal_writes_what_is_done(
    photos: Path, tmp_path: Path, format_: str, number: int, code: int, word: bytes
) -> None:
    output = tmp_path / "scores.out"
    process = start("score", *FAKE, "--format", format_, "-o", output, "-")
    assert process.stdin
    for name in GOOD:
        process.stdin.write(os.fsencode(photos / name) + b"\n")
    process.stdin.flush()
    _wait_until_scored(process, output)
    process.send_signal(number)
    out, err = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    assert process.wait(timeout=30) == code
    assert out == b""
    assert err == MADE_UP + b"declip: " + word + b" after 3 images; what was done is written\n"
    assert not list(tmp_path.glob(".*"))
    text = output.read_text()
    assert all(name in text for name in GOOD)
    if format_ == "json":
        assert len(json.loads(text)["images"]) == 3


@posix
def test_a_fragment_does_not_replace_what_is_there(photos: Path, tmp_path: Path) -> None:
    """A complete result of a run before, which took hours."""
    output = tmp_path / "scores.csv"
    output.write_text("complete")
    process = start("score", *FAKE, "-o", output, "-")
    assert process.stdin
    for name in GOOD:
        process.stdin.write(os.fsencode(photos / name) + b"\n")
    process.stdin.flush()
    _wait_until_scored(process, output)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read().decode()  # type: ignore[union-attr]
    assert process.wait(timeout=30) == 130
    beside = tmp_path / "scores.partial.csv"
    assert error.endswith(f"declip: {output} stays as it was: what was done is in {beside}\n")
    assert output.read_text() == "complete"
    assert len(beside.read_text().splitlines()) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "scores.csv", "scores.partial.csv"}


@pytest.mark.parametrize("older", [True, False])
def test_a_full_disk_keeps_what_was_scored(
    older: bool, photos: Path, tmp_path: Path, on_full_disk: Callable[..., Any]
) -> None:
    """Rows that were written whole stay, beside a result of before; the command says where."""
    output, beside = tmp_path / "scores.csv", tmp_path / "scores.partial.csv"
    if older:
        output.write_text("complete")
    names = [str(photos / name) for name in GOOD] * 20
    done = on_full_disk([sys.executable, "-m", "declip_sdk", "score", *map(str, FAKE), "-o", str(output), *names], 4000)
    assert done.returncode == 2
    lines = beside.read_bytes()
    assert lines.endswith(b"\n")
    rows = list(csv.DictReader(lines.decode().splitlines()))
    assert 3 <= len(rows) < 60
    assert all(row["scored_with"] and row["quality"] for row in rows)
    assert [row["image"] for row in rows] == names[: len(rows)]
    *_, said = done.stderr.splitlines()
    assert f"cannot write {output}: File too large" in said
    assert said.endswith(f"{len(rows)} rows before that: {beside}.")
    assert output.exists() == older
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("name", "size"), [("scores.csv", 150), ("scores.json", 4000)])
def test_what_is_of_no_use_is_not_kept_on_a_full_disk(
    name: str, size: int, photos: Path, tmp_path: Path, on_full_disk: Callable[..., Any]
) -> None:
    """The heading alone; half of one JSON document."""
    names = [str(photos / one) for one in GOOD] * 20
    command = [sys.executable, "-m", "declip_sdk", "score", *map(str, FAKE), "-o", str(tmp_path / name), *names]
    done = on_full_disk(command, size)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


@posix
def test_an_interruption_after_one_image_is_said_in_the_singular(photos: Path) -> None:
    process = start("score", *JSONL, "-")
    assert process.stdin
    assert process.stdout
    process.stdin.write(os.fsencode(photos / "a.jpg") + b"\n")
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr
    assert process.stderr.read() == MADE_UP + b"declip: interrupted after 1 image; what was done is written\n"
    assert process.wait(timeout=30) == 130


@pytest.mark.parametrize("format_", ["csv", "json", "table"])
def test_a_backend_that_fails_on_its_way_writes_what_is_done(
    photos: Path, tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    output = tmp_path / "scores.out"
    output.write_text("older")
    _fail_in_call(3, monkeypatch)
    paths = [str(photos / name) for name in GOOD]
    assert run(["score", *FAKE, "--batch-size", "1", "--format", format_, "-o", str(output), *paths]) == 2
    assert capfdbinary.readouterr().err.removeprefix(MADE_UP).splitlines() == [
        b"declip: stopped after 2 of 3 images; what was done is written",
        f"declip: {output} stays as it was: what was done is in {tmp_path / 'scores.partial.out'}".encode(),
        b"declip: the device is gone. Plug it in.",
    ]
    assert output.read_text() == "older"
    text = (tmp_path / "scores.partial.out").read_text()
    assert [name in text for name in GOOD] == [True, True, False]
    if format_ == "json":
        assert len(json.loads(text)["images"]) == 2


def test_a_backend_that_fails_at_once_replaces_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    output = tmp_path / "scores.csv"
    output.write_text("older")
    _fail_in_call(1, monkeypatch)
    assert run(["score", *FAKE, "-o", str(output), str(photos / "a.jpg")]) == 2
    assert capfdbinary.readouterr().err == MADE_UP + b"declip: the device is gone. Plug it in.\n"
    assert output.read_text() == "older"
    assert not list(tmp_path.glob(".*"))


def _fail_in_call(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, works = iter(range(1, 100)), FakeBackend._compute_impl

    def compute_impl(self: FakeBackend, inputs: Any, sizes: Any) -> Any:
        if next(calls) == number:
            raise BackendExecutionError("the device is gone. Plug it in.")
        return works(self, inputs, sizes)

    monkeypatch.setattr(FakeBackend, "_compute_impl", compute_impl)


def _wait_until_scored(process: subprocess.Popen[bytes], output: Path) -> None:
    """Nothing can be seen from outside until the end, so wait until it has opened its file, and then some."""
    deadline = time.monotonic() + 30
    while not list(output.parent.glob(".*.partial")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.02)
    time.sleep(1.0)


@posix
def test_a_reader_that_goes_away_ends_it_quietly(photos: Path) -> None:
    paths = b"".join(os.fsencode(photos / "a.jpg") + b"\n" for _ in range(5000))
    (photos.parent / "list").write_bytes(paths)
    with (photos.parent / "list").open("rb") as stdin:
        process = start("score", *FAKE, "-", stdin=stdin)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == MADE_UP
    assert process.wait(timeout=30) == 141


# --- the best only


@pytest.mark.parametrize("format_", ["jsonl", "csv", "json", "table"])
def test_top_keeps_the_best_and_what_failed(photos: Path, capfdbinary: Any, format_: str) -> None:
    with Scorer(TINY, backend="fake") as scorer:
        scores = scorer.score([photos / n for n in GOOD])
    best = [Path(s.image).name for s in sorted(scores, key=lambda s: -s["quality"])][:2]
    assert run(["score", *FAKE, "--format", format_, "--top", "2", str(photos)]) == 1
    captured = capfdbinary.readouterr()
    assert b"1 of 4 images failed" in captured.err
    text = captured.out.decode()
    places = [text.index(name) for name in (*best, "broken.jpg")]
    assert places == sorted(places)
    assert not set(GOOD) - set(best) & {name for name in GOOD if name in text}


def test_top_follows_sort_and_min(photos: Path, capfdbinary: Any) -> None:
    with Scorer(TINY, backend="fake") as scorer:
        name = scorer.names[-1]
        scores = sorted(scorer.score([photos / n for n in GOOD]), key=lambda s: -s[name])
    (photos / "broken.jpg").unlink()
    for options, wanted in ((["--top", "1"], 1), (["--top", "9"], 3)):
        assert run(["score", *JSONL, *options, "--sort", name, str(photos)]) == 0
        assert names(capfdbinary.readouterr().out) == [Path(s.image).name for s in scores[:wanted]]
    bound = scores[1][name] - 1e-6
    table = ["--format", "table", "--sort", name]
    assert run(["score", *FAKE, *table, "--top", "1", "--min", f"{name}={bound}", str(photos)]) == 0
    assert "2 more images left out by --min or --top" in capfdbinary.readouterr().out.decode()
    assert run(["score", *FAKE, *table, "--top", "3", str(photos)]) == 0
    assert "left out" not in capfdbinary.readouterr().out.decode()


# --- in a terminal


@posix
def test_the_table_has_the_best_first_and_failures_below(photos: Path) -> None:
    code, seen = in_terminal("score", *FAKE, photos)
    assert code == 1
    with Scorer(TINY, backend="fake") as scorer:
        scores = scorer.score([photos / n for n in GOOD])
        lead = next(s for s in scorer.manifest.scores if s.kind == "quality")
        engine = scorer.manifest.name
    best_first = [Path(s.image).name for s in sorted(scores, key=lambda s: -s[lead.name])]
    places = [seen.rindex(text) for text in (*best_first, "1 failed", "broken.jpg", "passed over: 1 subfolder")]
    assert places == sorted(places)
    assert "█" in seen
    assert "\x1b[" in seen  # colours
    assert "validated" in seen
    assert f"{engine} on fake" in seen.splitlines()[-1]
    assert "/s" in seen.splitlines()[-1]
    assert "1 of 4" not in seen  # said above the reasons


@pytest.mark.parametrize(("views", "said"), [("1", False), ("3", True)])
def test_the_table_says_what_its_scores_compare_with(photos: Path, capfdbinary: Any, views: str, said: bool) -> None:
    assert run(["score", *FAKE, "--format", "table", "--views", views, str(photos / "a.jpg")]) == 0
    assert ("views=3: calibrated with one view" in capfdbinary.readouterr().out.decode()) == said


@posix
@pytest.mark.parametrize("options", [["json"], ["csv"], ["jsonl"], ["csv", "--top", "9"], ["json", "--top", "9"]])
def test_nothing_is_drawn_over_rows_in_a_terminal(photos: Path, options: list[str]) -> None:
    (photos / "broken.jpg").unlink()
    _, seen = in_terminal("score", *FAKE, photos, "--format", *options, columns=400)
    first = seen.index("{" if "json" in options[0] else "image,quality")
    text = seen[first : seen.index("passed over")]
    assert "scoring" not in text
    assert all(text.count(name) == 1 for name in GOOD)
    assert not re.search(r"\x1b\[[0-9]*[AK]", text)  # a line erased, the cursor moved up
    assert ("scoring" in seen) == ("--top" in options)


@posix
@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (["PYTHONIOENCODING=ascii"], "\\u96ea\\u5c71.png"),
        (
            ["-u", "PYTHONIOENCODING", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"],
            "\\xe9\\x9b\\xaa\\xe5\\xb1\\xb1.png",
        ),
    ],
)
def test_a_terminal_that_is_not_utf8_gets_ascii_in_straight_columns(
    photos: Path, monkeypatch: pytest.MonkeyPatch, setting: list[str], name: str
) -> None:
    save_picture(photos / ("long_" * 30 + "é.png"), 8)
    save_picture(photos / "plain.png", 9).rename(photos / "雪山.png")
    monkeypatch.setattr(command, "DECLIP", ["env", *setting, *command.DECLIP])
    _, seen = in_terminal("score", *FAKE, photos, columns=80)
    seen = _plain(seen)
    table = [line for line in seen.splitlines() if re.match(r"\d+ +\S+ +[0-9.]+ #", line)]
    assert seen.isascii()
    assert len(table) == 5
    assert len({re.search(r"\d\.\d\d #", line).start() for line in table}) == 1  # type: ignore[union-attr]
    assert sum(" ..." in line for line in table) == 1
    assert sum(name in line for line in table) == 1
    assert "\\xb7" not in seen
    assert "\\u2026" not in seen


@posix
@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_table_fits_its_terminal(photos: Path, columns: int) -> None:
    save_picture(photos / ("long_" * 30 + ".jpg"), 9)
    (photos / "broken.jpg").unlink()
    _, seen = in_terminal("score", *FAKE, photos, columns=columns)
    rows = [line for line in _plain(seen).splitlines() if ".jpg" in line or ".PNG" in line]
    assert len(rows) == 3
    assert all(len(row.rstrip()) <= columns for row in rows)


@posix
def test_a_progress_bar_is_shown_to_people_only(photos: Path, capfdbinary: Any) -> None:
    _, seen = in_terminal("score", *FAKE, photos, "-o", photos.parent / "s.csv")
    assert "scoring" in seen
    assert "4/4" in seen
    run(["score", *FAKE, str(photos)])
    assert b"scoring" not in capfdbinary.readouterr().err


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_standard_input_that_is_not_there_is_named(photos: Path) -> None:
    """As under cron, or started by a window system."""
    program = "import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", program, "-m", "declip_sdk", "score", *FAKE, "-"]
    result = subprocess.run(command, capture_output=True)
    assert result.returncode == 2
    assert b"standard input" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_cache_that_cannot_be_written_is_one_line(photos: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / "file"))
    assert run(["score", "--engine", str(TINY), "--backend", "openvino", str(photos / "a.jpg")]) == 0
    captured = capfd.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.startswith("declip: compiled models cannot be kept")
    assert "make the folder that `declip cache path` names writable" in captured.err
    assert captured.err.count("\n") == 1
