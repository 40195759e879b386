"""How ``declip`` ends where the system refuses something or a signal arrives: one line, the documented exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from declip_sdk.cli import run

from .command import DECLIP, FAKE, TINY, start
from .conftest import save_picture
from .test_score import MADE_UP

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's /dev/full, /proc, pipes and signals")

VERBS = {
    "score": ["score", *FAKE],
    "score as json": ["score", *FAKE, "--format", "json"],
    "score as table": ["score", *FAKE, "--format", "table"],
    "info": ["info", str(TINY)],
    "info as json": ["info", "--format", "json", str(TINY)],
    "verify": ["verify", str(TINY)],
    "cache": ["cache", "list"],
    "help": ["--help"],
}


def in_shell(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run ``declip`` with the redirections that ``command`` has, as ``"$@" > /dev/full``."""
    return subprocess.run(["sh", "-c", command, "sh", *DECLIP, *map(str, arguments)], capture_output=True, timeout=120)


def require_one_line(result: subprocess.CompletedProcess[bytes], *words: str) -> None:
    assert result.returncode == 2, result.stderr.decode()
    error = result.stderr.removeprefix(MADE_UP).decode()
    assert error.startswith("declip: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


# --- standard streams


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_full_disk_behind_standard_output_is_one_line(verb: str, tmp_path: Path) -> None:
    photo = [save_picture(tmp_path / "a.png", 1)] if verb.startswith("score") else []
    require_one_line(in_shell('"$@" > /dev/full', *VERBS[verb], *photo), "standard output", "No space left")


@pytest.mark.parametrize("verb", ["score", "info"])
def test_a_closed_standard_output_is_one_line(verb: str, tmp_path: Path) -> None:
    photo = [save_picture(tmp_path / "a.png", 1)] if verb == "score" else []
    require_one_line(in_shell('"$@" >&-', *VERBS[verb], *photo), "standard output is closed", "-o")


@pytest.mark.parametrize("where", ["/dev/full", "/dev/null"])
def test_where_nobody_can_be_told_the_exit_code_remains(where: str) -> None:
    assert in_shell(f'"$@" 2> {where}', "score", "--format", "xml", "x.jpg").returncode == 2


@pytest.mark.parametrize("verb", ["score", "info", "help"])
def test_a_reader_that_goes_away_is_no_news(verb: str, tmp_path: Path) -> None:
    photos = [save_picture(tmp_path / "a.png", 1)] if verb == "score" else []
    process = start(*VERBS[verb], *photos)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read().removeprefix(MADE_UP) == b""
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("output", [False, True])
def test_a_standard_input_that_cannot_be_read_is_the_one_to_blame(output: bool, tmp_path: Path) -> None:
    older = tmp_path / "out.csv"
    older.write_text("older")
    arguments = ["-o", str(older)] if output else ["--format", "csv"]
    result = in_shell(f'"$@" 0> {tmp_path / "in"}', "score", *FAKE, *arguments, "-")
    require_one_line(result, "standard input cannot be read")
    assert "out.csv" not in result.stderr.decode()
    assert older.read_text() == "older"


# --- signals

# Sends the signal when the named module is about to be imported: a moment that no sleep would hit twice.
INTERRUPT_AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Finder())
from declip_sdk.cli import main
main(sys.argv[3:])
"""


@pytest.mark.parametrize("module", ["click", "numpy", "declip_sdk.cli.table"])
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_while_we_start_is_one_line(module: str, number: int, code: int, word: str) -> None:
    program = [sys.executable, "-c", INTERRUPT_AT_IMPORT, module, str(int(number)), "score", *FAKE, "x.jpg"]
    result = subprocess.run(program, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr.decode()) == (code, f"declip: {word}\n")


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, or in the background of a script."""
    photo = save_picture(tmp_path / "a.png", 1)
    program = [sys.executable, "-c", f"import signal; signal.signal(2, signal.SIG_IGN){INTERRUPT_AT_IMPORT}"]
    result = subprocess.run([*program, "numpy", "2", "score", *FAKE, photo], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_run_leaves_the_signals_of_its_caller_alone(capfd: Any) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert run(["verify", str(TINY)]) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


# --- paths


@pytest.mark.parametrize(
    "arguments", [["score", "x.jpg", "--engine"], ["info"], ["verify"], ["unpack"], ["benchmark", "--engine"]]
)
def test_an_empty_path_of_an_engine_is_said_to_be_empty(arguments: list[str], capfd: Any) -> None:
    assert run([*arguments, ""]) == 2
    assert "path of the engine is empty" in capfd.readouterr().err


def test_info_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.engine")
    result = subprocess.run([*DECLIP, "info", tmp_path / "pipe.engine"], capture_output=True, timeout=60)
    require_one_line(result, "pipe.engine is a pipe")


@pytest.mark.parametrize("output", [".", "", "/"])
def test_an_engine_is_not_packed_over_a_folder(output: str, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    assert run(["unpack", str(TINY), "-o", str(tmp_path / "folder")]) == 0
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert run(["pack", "folder", "-o", output]) == 2
    assert "is a folder. Name a file" in capfd.readouterr().err


@pytest.mark.parametrize("output", [".", ""])
def test_an_empty_working_directory_is_unpacked_into(output: str, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(["unpack", str(TINY), "-o", output]) == 0
    assert Path("fp32.onnx").is_file()  # still the same folder, not a new one in its place
    assert not list(Path().glob(".*"))
    assert run(["unpack", str(TINY), "-o", output]) == 2
    assert "not an empty folder" in capfd.readouterr().err


def test_a_pipe_or_device_is_not_replaced_by_an_engine(tmp_path: Path, capfd: Any) -> None:
    assert run(["unpack", str(TINY), "-o", str(tmp_path / "folder")]) == 0
    os.mkfifo(tmp_path / "pipe")
    assert run(["pack", str(tmp_path / "folder"), "-o", str(tmp_path / "pipe")]) == 2
    assert "is a pipe" in capfd.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_a_benchmark_looks_at_its_output_first(tmp_path: Path, capfd: Any) -> None:
    assert run(["benchmark", "--engine", str(TINY), "-o", str(tmp_path / "no" / "speed.csv")]) == 2
    captured = capfd.readouterr()
    assert "does not exist" in captured.err
    assert captured.out == ""
