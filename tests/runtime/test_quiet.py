"""Using us sends nothing anywhere and writes nothing outside the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from declip_runtime import backends

from . import tiny_engine

REAL = [name for name in backends.AUTO if backends.available()[name] is None]

WATCH = """
import os, sys
seen = []
def watch(event, args):
    if event.startswith("socket."):
        seen.append(f"{event} {args[1:]}")
    elif event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append(f"open {args[0]}")
    elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link", "sqlite3.connect", "subprocess.Popen", "os.exec"):
        seen.append(f"{event} {args[0]}")
sys.addaudithook(watch)
"""
SCORE = """
from declip_sdk import Scorer
import numpy as np
with Scorer(sys.argv[1], backend=sys.argv[2]) as scorer:
    scorer.score(np.full((40, 50, 3), 77, np.uint8))
    assert scorer.backend == sys.argv[2]
import time
time.sleep(0.5)  # for what a thread in the background may begin
"""
REPORT = "\nprint(*seen, sep='\\n')"


def watched(program: str, folder: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """What a program was seen doing by Python's audit events, and the files it left in its home and elsewhere.

    The audit hook sees Python code, the files also what native code did.
    """
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir(parents=True)
    home = str(folder / "home")
    removed = {"XDG_CACHE_HOME", "CI", "ORT_DISABLE_TELEMETRY"}
    environment = {k: v for k, v in os.environ.items() if k not in removed}
    environment |= {"HOME": home, "USERPROFILE": home, "LOCALAPPDATA": home, "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {name: str(folder / "tmp") for name in ("TMPDIR", "TEMP", "TMP")}
    command = [sys.executable, "-c", WATCH + program + REPORT, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder / "work")
    assert result.returncode == 0, result.stderr
    left = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    return result.stdout.splitlines(), left


def test_the_watch_sees(tmp_path: Path) -> None:
    """Otherwise the test below would prove nothing."""
    program = "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()"
    program += "\nopen(os.path.expanduser('~/x'), 'w').close()"
    seen, left = watched(program, tmp_path)
    assert seen[0].startswith("socket.__new__")
    assert seen[1] == f"open {tmp_path / 'home' / 'x'}"
    assert left == [str(Path("home", "x"))]


@pytest.mark.parametrize("backend", REAL)
def test_scoring_opens_no_socket_and_writes_only_into_the_cache(tmp_path: Path, backend: str) -> None:
    engine = tiny_engine.write(tmp_path / "tiny.engine")
    seen, left = watched(SCORE, tmp_path / "user", str(engine.path), backend)
    # Linux's is ~/.cache/declip, made with its parents; elsewhere the convention is another, also below the home
    cache = str(Path("home", ".cache", "declip")) if sys.platform == "linux" else "home"
    making = f"os.mkdir {tmp_path / 'user' / 'home' / '.cache'}"
    assert [e for e in seen if e not in ("", making) and cache not in e and os.devnull not in e] == []
    assert [e for e in seen if e.startswith(("socket", "subprocess", "os.exec", "sqlite3"))] == []
    assert [f for f in left if not f.startswith(cache)] == []
    if backend == "openvino":
        assert left != []  # it did compile and keep the model


@pytest.mark.skipif("openvino" not in REAL, reason="OpenVINO is not installed")
def test_openvinos_own_telemetry_package_stays_usable() -> None:
    """Hidden while openvino is imported, and only then."""
    program = (
        "import sys\n"
        "from declip_runtime.quiet import import_openvino\n"
        "openvino = import_openvino()\n"
        "assert import_openvino() is openvino and openvino.Core and openvino.convert_model\n"
        "assert not any(m.startswith('openvino_telemetry') for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif("onnxruntime" not in REAL, reason="ONNX Runtime is not installed")
@pytest.mark.parametrize("before", ["", "0"])
def test_the_environment_is_put_back(before: str) -> None:
    program = (
        "import os\n"
        "from declip_runtime.quiet import import_onnxruntime\n"
        "import_onnxruntime()\n"
        "print(os.environ.get('ORT_DISABLE_TELEMETRY', ''))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if before:
        environment["ORT_DISABLE_TELEMETRY"] = before
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout == f"{before}\n"
