"""Programs that run in a process where some libraries seem not to be installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

TRAINING_LIBRARIES = ("torch", "torchvision", "open_clip", "timm", "transformers", "diffusers", "onnx", "onnxscript")
BACKEND_LIBRARIES = ("openvino", "onnxruntime", "tensorrt", "tensorrt_lean", "cuda", "nncf")
DEVELOPMENT_LIBRARIES = ("pandas", "scipy", "skimage", "safetensors", "psutil", "hypothesis", "cupy")

_BLOCKER = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
BLOCKED = frozenset(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Blocker())
exec(compile(sys.argv.pop(1), "<program>", "exec"))
"""


def run_without(libraries: Iterable[str], program: str, *arguments: str | Path) -> str:
    """Run the program with those libraries unimportable, in another working directory than the project's.

    Returns what it prints, fails with what it complains.
    """
    command = [sys.executable, "-c", _BLOCKER, ",".join(libraries), program, *map(str, arguments)]
    result = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout
