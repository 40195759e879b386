from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from declip_runtime.backends.fake import FakeBackend
from declip_runtime.errors import BackendExecutionError
from declip_sdk import Scorer
from declip_sdk.cli import run

from .command import FAKE, TINY, in_terminal, start
from .conftest import save_picture

JSONL = [*FAKE, "--format", "jsonl"]
GOOD = ["a.jpg", "b.PNG", "c.webp"]
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


def test_photos_that_nothing_here_decodes_are_mentioned(photos: Path, capfdbinary: Any) -> None:
    for name in ("1.heic", "2.HEIC", "3.dng"):
        (photos / name).touch()
    (photos / "broken.jpg").unlink()
    assert run(["score", *FAKE, str(photos)]) == 0
    assert b"2 .heic, 1 .dng" in capfdbinary.readouterr().err


def test_a_folder_without_images_is_wrong_use(tmp_path: Path, capfdbinary: Any) -> None:
    assert run(["score", *FAKE, str(tmp_path)]) == 2
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert b"no images" in captured.err
    assert b"--recursive" in captured.err


def test_the_scores_are_those_of_the_library(photos: Path, capfdbinary: Any) -> None:
    paths = [str(photos / name) for name in GOOD]
    assert run(["score", *JSONL, *paths]) == 0
    with Scorer(TINY, backend="fake") as scorer:
        expected = scorer.score(paths)
    for row, score in zip(rows(capfdbinary.readouterr().out), expected, strict=True):
        assert row == {"image": score.image, "error": None} | {
            n: round(v, 6) for n, v in zip(score.names, score.values, strict=True)
        }


@pytest.mark.parametrize(
    ("option", "changed"), [(["--views", "3"], {"views": 3}), (["--exact"], {"decode": "exact"}), ([], {})]
)
def test_options_reach_the_scorer(photos: Path, capfdbinary: Any, option: list[str], changed: dict[str, Any]) -> None:
    assert run(["score", *FAKE, "--format", "json", *option, str(photos / "a.jpg")]) == 0
    document = json.loads(capfdbinary.readouterr().out)
    with Scorer(TINY, backend="fake") as scorer:
        expected = {"name": scorer.manifest.name, **scorer.identity, **changed}
    assert {k: v for k, v in document.items() if k != "images"} == expected
    assert len(document["images"]) == 1


# --- formats


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
        assert all(value is None for name, value in row.items() if name not in ("image", "error"))
    (record,) = csv.DictReader(io.StringIO(texts["csv"]))
    assert record["error"].startswith("ImageDecodeError: ")
    assert all(value == "" for name, value in record.items() if name not in ("image", "error"))
    assert "1 failed" in texts["table"]
    assert "not an image" in texts["table"]


@posix
def test_any_file_name_survives_in_every_format(tmp_path: Path, capfdbinary: Any) -> None:
    strange = [
        "new\nline.png",
        'quo"te, comma.png',
        "雪山 🏔.png",
        "tab\t.png",
        os.fsdecode(b"latin\xe9.png"),
        "[red]x.png",
    ]
    paths = [str(save_picture(tmp_path / "plain.png", i).rename(tmp_path / n)) for i, n in enumerate(strange)]
    assert run(["score", *FAKE, "--format", "jsonl", *paths]) == 0
    assert [row["image"] for row in rows(capfdbinary.readouterr().out)] == paths
    assert run(["score", *FAKE, "--format", "json", *paths]) == 0
    assert [row["image"] for row in json.loads(capfdbinary.readouterr().out)["images"]] == paths
    assert run(["score", *FAKE, "--format", "csv", *paths]) == 0
    text = capfdbinary.readouterr().out.decode("utf-8", "surrogateescape")
    assert [record["image"] for record in csv.DictReader(io.StringIO(text, newline=""))] == paths
    assert run(["score", *FAKE, "--format", "table", *paths]) == 0
    table = capfdbinary.readouterr().out.decode()
    for shown in ("new\\nline.png", 'quo"te, comma.png', "雪山 🏔.png", "tab\\t.png", "latin\\xe9.png", "[red]x.png"):
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
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--views", "0"], "0 is not in the range"),
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
    assert err == b"declip: " + word + b" after 3 images; what was done is written\n"
    assert not list(tmp_path.glob(".*"))
    text = output.read_text()
    assert all(name in text for name in GOOD)
    if format_ == "json":
        assert len(json.loads(text)["images"]) == 3


@pytest.mark.parametrize("format_", ["csv", "json", "table"])
def test_a_backend_that_fails_on_its_way_writes_what_is_done(
    photos: Path, tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    output = tmp_path / "scores.out"
    output.write_text("older")
    _fail_in_call(3, monkeypatch)
    paths = [str(photos / name) for name in GOOD]
    assert run(["score", *FAKE, "--batch-size", "1", "--format", format_, "-o", str(output), *paths]) == 2
    assert capfdbinary.readouterr().err.splitlines() == [
        b"declip: stopped after 2 of 3 images; what was done is written",
        b"declip: the device is gone. Plug it in.",
    ]
    text = output.read_text()
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
    assert capfdbinary.readouterr().err == b"declip: the device is gone. Plug it in.\n"
    assert output.read_text() == "older"
    assert not list(tmp_path.glob(".*"))


def _fail_in_call(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, works = iter(range(1, 100)), FakeBackend._run_impl

    def run_impl(self: FakeBackend, images: Any) -> Any:
        if next(calls) == number:
            raise BackendExecutionError("the device is gone. Plug it in.")
        return works(self, images)

    monkeypatch.setattr(FakeBackend, "_run_impl", run_impl)


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
    assert process.stderr.read() == b""
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
    places = [seen.rindex(text) for text in (*best_first, "1 failed", "broken.jpg", "1 of 4 images failed")]
    assert places == sorted(places)
    assert "█" in seen
    assert "\x1b[" in seen  # colours
    assert "validated" in seen
    assert f"{engine} on fake" in seen.splitlines()[-1]
    assert "/s" in seen.splitlines()[-1]


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
    assert capfdbinary.readouterr().err == b"declip: 1 of 4 images failed\n"


def _plain(text: str) -> str:
    import re

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
    assert captured.err.count("\n") == 1
