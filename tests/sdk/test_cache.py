"""``declip cache`` where a user gets something wrong; where all is well it is in test_engine_verbs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from declip_runtime.cache import Cache
from declip_sdk.cli import run


def test_clear_removes_nothing_of_the_users_own(tmp_path: Path, capfd: Any) -> None:
    photo = tmp_path / "photos" / "a.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"photo")
    assert run(["cache", "clear", "--folder", str(tmp_path)]) == 0
    assert f"no compiled models in {tmp_path}\n" in capfd.readouterr().out
    Cache(tmp_path).put("a-model", 2_000_000, lambda file: file.write(bytes(2_000_000)))
    assert run(["cache", "list", "--folder", str(tmp_path)]) == 0
    assert "in 1 model\n" in capfd.readouterr().out
    assert run(["cache", "clear", "--folder", str(tmp_path)]) == 0
    assert capfd.readouterr().out == "2.0 MB freed\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [photo]


def test_the_limit_is_shown(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECLIP_CACHE_LIMIT", "8GB")
    assert run(["cache", "list", "--folder", str(tmp_path)]) == 0
    assert "of at most 8000 MB" in capfd.readouterr().out
    monkeypatch.setenv("DECLIP_CACHE_LIMIT", "a lot")
    assert run(["cache", "list", "--folder", str(tmp_path)]) == 2
    assert "DECLIP_CACHE_LIMIT='a lot' is no size" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="user ids without a home are Linux's")
@pytest.mark.parametrize("verb", ["path", "list", "clear"])
def test_without_a_home_folder_one_message(verb: str) -> None:
    """A container started under an arbitrary user id."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user without a home")
    program = (
        "import os, sys, click\n"
        "from declip_sdk.cli import run\n"
        "import declip_sdk.cli.cache, declip_sdk.cli.group\n"
        "run(['cache', '--help'])\n"  # what is imported late, from a folder that may be closed to others
        "os.environ.pop('HOME', None)\n"
        "os.setuid(54321)\n"
        "sys.exit(run(['cache', sys.argv[1]]))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    result = subprocess.run([sys.executable, "-c", program, verb], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "the user has no home folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1
