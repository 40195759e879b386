"""Ruff refuses, at the line, what the runtime must never import; elsewhere it is what we work with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BANNED = ("torch", "torchvision", "open_clip", "timm", "transformers", "diffusers", "onnx")
LINES = "".join(f"import {m}\nfrom {m}.x import y\n" for m in BANNED)


def refused(file: str) -> list[int]:
    """The lines that ruff refuses when the file holds ``LINES``."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--output-format", "concise"]
    command += ["--stdin-filename", file, "-"]
    shown = subprocess.run(command, input=LINES, cwd=ROOT, capture_output=True, text=True).stdout
    return [int(line) for line in re.findall(r":(\d+):\d+: TID251", shown)]


def test_the_runtime_is_refused_them_and_the_others_are_not() -> None:
    assert sorted(set(refused("runtime/declip_runtime/backends/new.py"))) == list(range(1, 2 * len(BANNED) + 1))
    assert refused("export/declip_export/new.py") == []
