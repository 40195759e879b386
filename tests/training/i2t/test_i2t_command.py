"""``declip i2t relabel`` as a user runs it: beside a real endpoint, killed in the middle, begun again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from declip_sdk.cli import run
from declip_training.i2t.candidates import Candidate, candidate_lines
from declip_training.i2t.records import COLUMNS, read_provenance, read_records

from .chat_server import PERCEPTUAL, ChatServer, Response, chat_server, reply_text
from .conftest import save_image


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches what tests start, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def file(candidates: list[Candidate], tmp_path: Path) -> Path:
    path = tmp_path / "candidates.jsonl"
    path.write_bytes(b"".join(candidate_lines(candidates)))
    return path


def arguments(file: Path, server: ChatServer, *more: str) -> list[str]:
    endpoint = ["--base-url", server.url, "--model", "m", "--backoff", "0.01", "--workers", "2"]
    return ["i2t", "relabel", str(file), "-o", str(file.with_name("t.parquet")), *endpoint, *more]


def wait_until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_from_candidates_to_a_table_that_passes_its_check(file: Path, tmp_path: Path, capfd: Any) -> None:
    with chat_server() as server:
        assert run(arguments(file, server)) == 0
    told = capfd.readouterr()
    assert told.out == ""
    assert "6 records in" in told.err
    assert "6 replies in this run, 600 tokens sent, 240 written" in told.err
    table = tmp_path / "t.parquet"
    frame = pd.read_parquet(table)
    assert tuple(frame.columns) == COLUMNS
    assert list(frame["source_text"]) == [f"text {n}" for n in range(6)]
    assert read_provenance(table)["model"] == "m"
    assert run(["i2t", "check", str(table)]) == 0
    assert "6 rows, 0 problems" in capfd.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"images", file.name, "t.parquet", "t.journal.jsonl"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_after_a_kill_only_what_is_missing_is_asked(number: signal.Signals, file: Path, tmp_path: Path) -> None:
    """The first three are answered at once, the others only after the kill."""
    journal = tmp_path / "t.journal.jsonl"
    release = threading.Event()

    def script(text: str, _: int) -> Response:
        if text not in ("text 0", "text 1", "text 2"):
            release.wait(60)
        return Response()

    with chat_server(script) as server:
        command = [sys.executable, "-m", "declip_sdk", *arguments(file, server)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == 4)
        wait_until(lambda: len(server.seen) == 5)
        process.send_signal(number)
        if number == signal.SIGKILL:
            assert process.wait(30) == -signal.SIGKILL
            answered = 3
            assert journal.read_bytes().count(b"\n") == 1 + answered
            with journal.open("ab") as stream:  # what a kill within a write leaves
                stream.write(b'{"id": "q-instr')
        else:  # what was under way, and will be paid for, is waited for
            assert process.stderr is not None
            assert "waiting for requests under way" in process.stderr.readline()
            release.set()
            assert process.wait(30) == 128 + number
            answered = 5
            assert journal.read_bytes().count(b"\n") == 1 + answered
        release.set()
        assert not (tmp_path / "t.parquet").exists()

        server.seen.clear()
        server.script = lambda *_: Response()
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert sorted(server.texts()) == [f"text {n}" for n in range(answered, 6)]
        assert ("was cut off; one reply is asked for again" in again.stderr) == (number == signal.SIGKILL)
        assert f"{answered} replies in {journal} from before" in again.stderr
        assert len(read_records(tmp_path / "t.parquet")) == 6

        third = subprocess.run(command, capture_output=True, text=True)
        assert third.returncode == 0
        assert len(server.seen) == 6 - answered


def test_two_runs_at_once_do_not_pay_twice(file: Path, tmp_path: Path, capfd: Any) -> None:
    release = threading.Event()

    def script(*_: Any) -> Response:
        release.wait(60)
        return Response()

    with chat_server(script) as server:
        process = subprocess.Popen([sys.executable, "-m", "declip_sdk", *arguments(file, server)])
        wait_until(lambda: len(server.seen) == 2)
        assert run(arguments(file, server)) == 2
        assert "is in use by another run" in capfd.readouterr().err
        assert len(server.seen) == 2
        release.set()
        assert process.wait(60) == 0
        assert len(server.seen) == 6


def test_rejects_are_in_their_file_with_the_reason(file: Path, tmp_path: Path, capfd: Any) -> None:
    bad = reply_text(semantic=PERCEPTUAL)
    with chat_server(lambda text, _: Response(bad if text == "text 3" else None)) as server:
        assert run(arguments(file, server, "--attempts", "2")) == 0
        rejects = [json.loads(line) for line in (tmp_path / "t.rejects.jsonl").read_text().splitlines()]
        assert [(r["reason"], r["final"], r["attempts"], r["reply"]) for r in rejects] == [
            ("the semantic text is 94% perceptual, more than 25%", True, 2, bad)
        ]
        told = capfd.readouterr().err
        assert "set aside 1 x: the semantic text is ...% perceptual" in told
        assert "1 of 6 set aside in" in told
        assert len(read_records(tmp_path / "t.parquet")) == 5
        wider = ["--decoupling", "semantic_maximum_perceptual=1", "--decoupling", "semantic_minimum=0"]
        assert run(arguments(file, server, "--attempts", "2", *wider)) == 0
    assert len(server.seen) == 7  # other limits cost nothing
    assert not (tmp_path / "t.rejects.jsonl").exists()
    assert len(read_records(tmp_path / "t.parquet")) == 6


def test_what_is_not_answered_is_asked_again_by_the_same_command(file: Path, tmp_path: Path, capfd: Any) -> None:
    with chat_server(lambda text, _: Response(status=500 if text == "text 3" else 200)) as server:
        assert run(arguments(file, server, "--retries", "1")) == 1
        told = capfd.readouterr().err
        assert "asked again 2 x after: 500 Internal Server Error" in told
        assert "1 of them to be asked again by the same command" in told
        assert len(read_records(tmp_path / "t.parquet")) == 5
        server.script = lambda *_: Response()
        assert run(arguments(file, server)) == 0
    assert len(read_records(tmp_path / "t.parquet")) == 6


def test_first_asks_for_fewer_but_keeps_every_answer(file: Path, tmp_path: Path) -> None:
    with chat_server(lambda text, _: Response("no" if text == "text 4" else None)) as server:
        assert run(arguments(file, server, "--first", "1")) == 0
        assert len(read_records(tmp_path / "t.parquet")) == 1
        assert run(arguments(file, server)) == 0
        asked = len(server.seen)
        assert run(arguments(file, server, "--first", "2")) == 0
        assert [r.source_text for r in read_records(tmp_path / "t.parquet")] == [f"text {n}" for n in (0, 1, 2, 3, 5)]
        assert len((tmp_path / "t.rejects.jsonl").read_text().splitlines()) == 1
        assert len(server.seen) == asked  # what is settled is not asked again
        assert run(arguments(file, server, "--first", "2", "--attempts", "4")) == 0
        assert len(server.seen) == asked  # nor what waits behind the first ones


def test_heic_is_read_where_pillow_heif_is_installed(candidates: list[Candidate], file: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    photo = Path(candidates[0].image).with_suffix(".heic")
    with Image.open(candidates[0].image) as image:
        pillow_heif.from_pillow(image).save(photo)
    file.write_bytes(b"".join(candidate_lines([replace(candidates[0], image=str(photo))])))
    with chat_server() as server:
        # in a process of its own: what Pillow reads, it reads until the process ends
        done = subprocess.run([sys.executable, "-m", "declip_sdk", *arguments(file, server)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(server.seen) == 1


def test_an_endpoint_that_refuses_all_is_one_message(file: Path, tmp_path: Path, capfd: Any) -> None:
    with chat_server(lambda *_: Response(status=400, text="response_format is unknown")) as server:
        assert run(arguments(file, server)) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert "fails again and again: refused: 400 Bad Request: response_format is unknown" in told
    assert "--response-format none" in told


def test_a_dry_run_asks_and_writes_nothing(file: Path, tmp_path: Path, capfd: Any) -> None:
    before = sorted(tmp_path.iterdir())
    command = ["i2t", "relabel", str(file), "-o", str(tmp_path / "t.parquet"), "--dry-run", "--image-tokens", "1000"]
    assert run([*command, "--price-in", "2", "--price-out", "8"]) == 0
    lines = dict(line.split(None, 1) for line in capfd.readouterr().out.splitlines()[:2])
    assert lines == {"candidates": "6", "requests": "6"}
    assert sorted(tmp_path.iterdir()) == before
    with chat_server() as server:
        run(arguments(file, server, "--first", "4"))
        assert len(server.seen) == 4
    capfd.readouterr()
    assert run([*command, "--price-in", "2", "--price-out", "8"]) == 0
    out = capfd.readouterr().out
    assert "requests                     2\n" in out
    assert "tokens sent              2," in out
    assert "cost" in out


def test_the_key_is_the_one_that_is_named(file: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "private")
    monkeypatch.setenv("MY_KEY", "secret")
    with chat_server() as server:
        assert run(arguments(file, server, "--first", "1", "--key-variable", "MY_KEY")) == 0
        assert server.seen[0].headers["authorization"] == "Bearer secret"
        assert run(arguments(file, server, "--key-variable", "NO_KEY")) == 2
        assert "there is no such environment variable" in capfd.readouterr().err
        monkeypatch.setenv("MY_KEY", "s\u00e9cret")
        assert run(arguments(file, server, "--key-variable", "MY_KEY")) == 2
        assert "its value is no key" in capfd.readouterr().err
        monkeypatch.setenv("MY_KEY", "secret\n")  # as from a file
        assert run(arguments(file, server, "--first", "2", "--key-variable", "MY_KEY")) == 0
        assert server.seen[1].headers["authorization"] == "Bearer secret"
        assert run(arguments(file, server, "--first", "3")) == 0
    assert "private" not in server.seen[2].headers["authorization"]
    assert "secret" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--extra", "{x"], "--extra is no JSON"),
        (["--extra", "[1]"], "--extra is no JSON object"),
        (["--extra", '{"stream": true}'], "--extra sets 'stream'"),
        (["--extra", '{"model": "other"}'], "--extra sets 'model'"),
        (["--decoupling", "x=1"], "there is no limit 'x'. Use one of: perceptual_minimum"),
        (["--decoupling", "perceptual_terms=a"], "give a number"),
        (["--decoupling", "perceptual_minimum=35"], "perceptual_minimum=35 is no share. Give a number from 0 to 1"),
        (["--decoupling", "semantic_minimum=nan"], "semantic_minimum=nan is no share"),
        (["--decoupling", "semantic_maximum_perceptual=-0.1"], "semantic_maximum_perceptual=-0.1 is no share"),
        (["--decoupling", "perceptual_terms=-1"], "perceptual_terms=-1 is no number of terms. Give 0 or more"),
        (["--timeout", "inf"], "inf is not a finite number"),
        (["--backoff", "nan"], "nan is not a finite number"),
        (["--price-in", "nan", "--dry-run"], "nan is not a finite number"),
        (["--base-url", "http://localhost:abc/v1"], "'http://localhost:abc/v1' is no address"),
        (["--base-url", "localhost"], "'localhost' is no address"),
        (["-o", "t.csv"], "Let it end in .parquet"),
        (["--vocabulary", "none.txt"], "the vocabulary none.txt cannot be read"),
        (["--prompt", "none.txt"], "the prompt none.txt cannot be read"),
        (["--journal", "no/such/j"], "the folder no/such does not exist"),
    ],
)
def test_wrong_use_is_one_message(more: list[str], message: str, file: Path, capfd: Any) -> None:
    with chat_server() as server:
        assert run(arguments(file, server, *more)) == 2
    told = capfd.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not server.seen


@pytest.mark.parametrize(("option", "other"), [("--rejects", "--journal"), ("--journal", "--output")])
def test_what_was_paid_for_is_not_overwritten(option: str, other: str, file: Path, tmp_path: Path, capfd: Any) -> None:
    with chat_server() as server:
        assert (
            run(arguments(file, server, option, str(tmp_path / "x.parquet"), other, str(tmp_path / "x.parquet"))) == 2
        )
    assert "are three files" in capfd.readouterr().err
    assert not server.seen


@pytest.mark.parametrize("option", ["--prompt", "--vocabulary"])
def test_what_is_read_is_not_overwritten(option: str, file: Path, tmp_path: Path, capfd: Any) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("<<<\n{text}\n>>>")
    with chat_server() as server:
        assert run(arguments(file, server, option, str(mine), "--rejects", str(mine))) == 2
    assert "mine.txt is read, so it will not be overwritten" in capfd.readouterr().err
    assert mine.exists()


def test_when_all_is_set_aside_there_is_no_table_and_it_is_a_failure(file: Path, tmp_path: Path, capfd: Any) -> None:
    with chat_server(lambda *_: Response("no")) as server:
        assert run(arguments(file, server, "--attempts", "1")) == 1
    assert "no reply was accepted, so" in capfd.readouterr().err
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_path_that_no_table_can_hold_is_refused_before_it_costs(
    candidates: list[Candidate], file: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    image = save_image(folder / "a.jpg", 1)
    mine = folder / os.fsdecode(b"candidates\xe9.jsonl")
    mine.write_bytes(b"".join(candidate_lines([replace(candidates[0], image=str(image))])))
    with chat_server() as server:
        assert run([*arguments(mine, server), "-o", str(tmp_path / "t.parquet")]) == 2
        told = capfd.readouterr().err
        assert "caf\\xe9/a.jpg is not named in UTF-8" in told
        assert told.count("\n") == 1
        assert not server.seen
        assert run(arguments(mine, server)) == 0  # beside the image no more of its path is needed
    assert [record.image for record in read_records(folder / "t.parquet")] == ["a.jpg"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["-o", "folder.parquet"], "folder.parquet is a folder. Name a file"),
        (["-o", "plain/t.parquet"], "plain is a file, no folder. Name another place"),
        (["--journal", "plain/j"], "plain is a file, no folder. Name another place"),
        (["-o", "link.parquet"], "it is a link into"),
        (["--journal", os.devnull], "is a device or a pipe"),
    ],
)
def test_a_place_of_the_wrong_kind_is_named(
    option: list[str], message: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "plain").touch()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "none" / "t.parquet")
    with chat_server() as server:
        assert run(arguments(file, server, *option)) == 2
    told = capfd.readouterr().err
    assert message in told
    assert "space" not in told
    assert told.count("\n") == 1
    assert not server.seen


def test_a_dry_run_is_refused_where_the_run_would_be(file: Path, tmp_path: Path, capfd: Any) -> None:
    dry = ["i2t", "relabel", str(file), "-o", str(tmp_path / "t.parquet"), "--dry-run"]
    with chat_server() as server:
        assert run(arguments(file, server)) == 0
    assert run(dry) == 0
    assert run([*dry, "--model", "m"]) == 0
    capfd.readouterr()
    assert run([*dry, "--model", "other"]) == 2
    assert "was begun with another model" in capfd.readouterr().err
    assert run([*dry, "--max-side", "99"]) == 2
    assert "was begun with another max side" in capfd.readouterr().err


def test_another_model_needs_another_journal(file: Path, tmp_path: Path, capfd: Any) -> None:
    with chat_server() as server:
        assert run(arguments(file, server)) == 0
        capfd.readouterr()
        assert run([*arguments(file, server), "--model", "other"]) == 2
        assert "was begun with another model" in capfd.readouterr().err
        assert run([*arguments(file, server), "--model", "other", "--journal", str(tmp_path / "o.jsonl")]) == 0
    assert len(server.seen) == 12


def test_a_full_disk_is_one_message(file: Path, tmp_path: Path, on_full_disk: Callable[..., Any]) -> None:
    """The journal may hold its head, not a reply."""
    journal = tmp_path / "t.journal.jsonl"
    with chat_server() as server:
        done = on_full_disk([sys.executable, "-m", "declip_sdk", *arguments(file, server)], 300)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"cannot write {journal}" in done.stderr
        assert journal.read_bytes().count(b"\n") == 1
        with contextlib.suppress(FileNotFoundError):
            assert not (tmp_path / "t.parquet").exists()
        assert run(arguments(file, server)) == 0
    assert len(read_records(tmp_path / "t.parquet")) == 6
