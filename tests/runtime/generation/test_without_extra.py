"""What is imported when, and what is said where the extra ``generate`` is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from contracts.blocked import BACKEND_LIBRARIES, TRAINING_LIBRARIES, run_without

from .tiny_models import Models

GENERATION = Path(__file__).parents[3] / "runtime" / "declip_runtime" / "generation"
HEAVY = (*TRAINING_LIBRARIES, *BACKEND_LIBRARIES, "tokenizers", "numpy", "PIL")


def test_the_package_imports_nothing_heavy() -> None:
    program = "import sys, declip_runtime.generation; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & (set(loaded) - _at_start())


def _at_start() -> set[str]:
    program = "import sys; print(*{m.partition('.')[0] for m in sys.modules})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_no_module_needs_the_extra_to_be_imported() -> None:
    names = [f"declip_runtime.generation.{p.stem}" for p in GENERATION.glob("*.py") if p.stem != "__init__"]
    assert len(names) > 10
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('fine')"
    assert run_without((*HEAVY[:-2], "huggingface_hub"), program, *names) == "fine\n"


SCHEDULE = """
from declip_runtime.generation.schedulers import NAMES, Schedule
for name in NAMES:
    assert len(Schedule({"_class_name": "DDIMScheduler"}, name, 3, [1]).timesteps) >= 3
"""
# diffusers looks whether a package is there before it imports it.
HIDDEN = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in BLOCKED else find(name, *rest)
"""


def test_schedulers_need_neither_transformers_nor_torchvision() -> None:
    blocked = ("transformers", "torchvision", "open_clip", "timm", "onnx", "scipy", "peft", "accelerate")
    report = "print('loaded:', *sorted(BLOCKED & set(sys.modules)))"
    assert run_without(blocked, "import sys\n" + HIDDEN + SCHEDULE + report) == "loaded:\n"


@pytest.mark.parametrize(("missing", "named"), [("torch", "torch"), ("diffusers", "diffusers")])
def test_a_missing_library_is_named_with_the_command(missing: str, named: str) -> None:
    program = (
        "import sys\nfrom declip_runtime.errors import BackendUnavailableError\n"
        "try:\n    exec(sys.argv.pop())\nexcept BackendUnavailableError as error:\n    print(error)\n"
    )
    said = run_without([missing], program, SCHEDULE)
    assert said.startswith("generating pictures needs torch and diffusers, and an import fails (No module named")
    assert named in said
    assert said.rstrip().endswith("Run: pip install 'declip-sdk[generate]'")


def test_a_missing_tokenizers_is_named_too(sd: Models, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(sd.files["tokenizers/input_ids.json"])
    program = (
        "import sys\nfrom declip_runtime.errors import BackendUnavailableError\n"
        "from declip_runtime.generation.text import Tokenizer\n"
        "try:\n    Tokenizer(open(sys.argv[1], 'rb').read(), 77, 0)\n"
        "except BackendUnavailableError as error:\n    print(error)\n"
    )
    said = run_without(["tokenizers"], program, tmp_path / "tokenizer.json")
    assert "needs tokenizers" in said
    assert "pip install 'declip-sdk[generate]'" in said
