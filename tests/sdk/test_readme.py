"""README tells the truth: its main command runs in a new environment, its links lead somewhere."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
MAIN_COMMAND = BLOCKS[0][1].strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fresh clone would hold: every file that git tracks, as it stands."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    target = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def test_the_main_command_scores_the_example_photos_without_torch(clone: Path) -> None:
    assert MAIN_COMMAND.startswith("python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/declip score")
    base = Path(sys.base_prefix) / "bin"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{base}{os.pathsep}{os.environ['PATH']}"
    environment["XDG_CACHE_HOME"] = str(clone / "cache")
    done = subprocess.run(
        ["bash", "-c", f"({MAIN_COMMAND.replace('pip install', 'pip install --quiet')})"],
        cwd=clone, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one example photo is broken on purpose
    rows = {Path(row["image"]).name: row for row in csv.DictReader(io.StringIO(done.stdout))}
    photos = {p.name for p in (ROOT / "examples/photos").glob("*.jpg")}
    assert set(rows) == photos
    assert rows["broken.jpg"]["error"]
    assert all(0 <= float(rows[name]["quality"]) <= 1 for name in photos - {"broken.jpg"})
    listed = subprocess.run([clone / ".venv/bin/pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|open_clip|onnx)\b", listed, re.MULTILINE)


def test_the_python_example_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (code,) = (text for language, text in BLOCKS if language == "python")
    photos = [str(ROOT / "examples/photos" / name) for name in ("coffee.jpg", "broken.jpg")]
    code = code.replace('"a.jpg", "b.jpg"', f"{photos[0]!r}").replace("Scorer()", "Scorer(backend='fake')")
    exec(compile(code, "README.md", "exec"), {"paths": photos})
    good, broken = capfd.readouterr().out.splitlines()
    assert re.fullmatch(re.escape(photos[0]) + r" 0\.\d+", good)
    assert "cannot be decoded" in broken or "is not an image" in broken


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_no_placeholder_was_left() -> None:
    assert "@@" not in README


def test_the_version_is_the_same_everywhere() -> None:
    import declip_sdk

    assert f"## {declip_sdk.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
