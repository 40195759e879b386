from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from declip_runtime.engine_file import EngineFile
from declip_sdk import __version__
from declip_sdk.cli import run
from declip_sdk.cli.group import VERBS

from .command import DECLIP, TINY


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_and_says_so_itself(verb: str, capfd: Any) -> None:
    command = import_module(f"declip_sdk.cli.{verb.replace('-', '_')}").command
    assert isinstance(command, click.Command)
    assert run([verb, "--help"]) == 0
    assert capfd.readouterr().out.startswith(f"Usage: declip {verb}")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(arguments: list[str], capfd: Any) -> None:
    assert run(arguments) == 0
    out = capfd.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_the_version_is_the_packages(capfd: Any) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"declip {__version__}\n"


def test_an_unknown_verb_is_wrong_use(capfd: Any) -> None:
    assert run(["scroe"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("declip: No such command 'scroe'")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("place", ["no/such/folder/x", "file/x"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, place: str, capfd: Any) -> None:
    (tmp_path / "file").touch()
    EngineFile.open(TINY).unpack(tmp_path / "unpacked")
    assert run(["pack", str(tmp_path / "unpacked"), "-o", str(tmp_path / place)]) == 2
    assert run(["unpack", str(TINY), "-o", str(tmp_path / "file" / "x")]) == 2
    assert [line.split(":")[1] for line in capfd.readouterr().err.splitlines()] == [
        f" cannot write {tmp_path / place}",
        f" cannot write {tmp_path / 'file' / 'x'}",
    ]


def test_it_runs_as_a_module() -> None:
    result = subprocess.run([*DECLIP, "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"declip {__version__}\n")


def test_a_reader_that_goes_away_ends_help_too() -> None:
    process = subprocess.Popen([*DECLIP, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
