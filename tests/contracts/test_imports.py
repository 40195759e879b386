from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import declip_runtime
import declip_sdk.cli

from .blocked import BACKEND_LIBRARIES, DEVELOPMENT_LIBRARIES, TRAINING_LIBRARIES, run_without

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny.engine"

MODULES = sorted(
    m.name
    for package in (declip_runtime, declip_sdk.cli)
    for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
)


def test_the_blocker_blocks() -> None:
    """Otherwise the tests below would prove nothing."""
    with pytest.raises(AssertionError, match="blocked by the test"):
        run_without(["PIL"], "import PIL")


def test_every_module_imports_without_any_vendor_library() -> None:
    assert len(MODULES) > 20
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('fine')"
    blocked = (*TRAINING_LIBRARIES, *BACKEND_LIBRARIES, *DEVELOPMENT_LIBRARIES)
    assert run_without(blocked, program, *MODULES) == "fine\n"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_image_is_scored_without_torch_and_onnx(backend: str, tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path / "photo.jpg")
    program = (
        "import sys\n"
        "from declip_sdk import Scorer\n"
        "with Scorer(sys.argv[1], backend=sys.argv[2], cache_dir=sys.argv[4]) as scorer:\n"
        "    print(scorer.score(sys.argv[3])[0].values)\n"
        "print(sorted(BLOCKED & set(sys.modules)))\n"
    )
    blocked = (*TRAINING_LIBRARIES, *DEVELOPMENT_LIBRARIES)
    values, loaded = run_without(blocked, program, TINY, backend, tmp_path / "photo.jpg", tmp_path).splitlines()
    assert all(0.0 <= float(v) <= 1.0 for v in values.strip("(),").split(","))
    assert loaded == "[]"


def test_doctor_and_info_need_no_library_of_nvidia(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "os.environ['XDG_CACHE_HOME'] = sys.argv[2]\n"
        "from declip_sdk.cli import run\n"
        "print(*(run([verb, sys.argv[1], '--format', 'json']) for verb in ('doctor', 'info')))\n"
    )
    said = run_without(("cuda", "tensorrt", "tensorrt_lean"), program, TINY, tmp_path)
    assert said.splitlines()[-1] == "0 0"
    assert '"gpus": []' in said
    assert "TensorRT is not installed" in said


@pytest.mark.parametrize("statement", ["import declip_sdk", "import declip_sdk.cli"])
def test_importing_us_loads_no_vendor_library(statement: str) -> None:
    # What is there before us was put there by packages that Python runs at its start, as cuda-bindings 12 does.
    program = f"import sys\nbefore = set(sys.modules)\n{statement}\n"
    program += "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    vendors = {*TRAINING_LIBRARIES, *BACKEND_LIBRARIES, *DEVELOPMENT_LIBRARIES, "numpy", "PIL"}
    assert not vendors & set(loaded)


def test_importing_us_and_asking_for_help_is_quick() -> None:
    """Interpreter start included; CPU time, because a busy machine is not what is measured."""
    assert _seconds("import declip_sdk") < 0.2
    assert _seconds("from declip_sdk.cli import run; run(['--help'])") < 0.3


def _seconds(program: str) -> float:
    command = [sys.executable, "-c", f"{program}\nimport sys, time\nprint(time.process_time(), file=sys.stderr)"]
    results = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(result.stderr) for result in results)
