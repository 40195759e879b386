"""A table of 120 pictures with two descriptions each, and a CLIP of a few thousand weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from declip_training.i2t.records import Record
from declip_training.train.settings import TrainSettings
from declip_training.train.towers import Towers

CPU = torch.device("cpu")
SHAPES = ("circle", "square", "stripe", "cross", "ring", "dot")
LOOKS = ("bright", "dark", "reddish", "bluish", "soft")


def small(**changes: Any) -> TrainSettings:
    """Settings for tests: 2 steps an epoch of the table below."""
    values = {"epochs": 4, "batch": 40, "lr": 1e-3, "latent": 16, "validation": 0.2, "crops": 2, **changes}
    return TrainSettings(**values)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines beside their images; do not change them."""
    return write_table(tmp_path_factory.mktemp("i2t"), 120)


@pytest.fixture
def place(table: Path, tmp_path: Path) -> Path:
    """A copy of the table that may be damaged."""
    return Path(shutil.copytree(table.parent, tmp_path / "i2t")) / table.name


def write_table(folder: Path, count: int) -> Path:
    """``count`` records whose pictures are noise; every text differs."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(count):
        noise = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.png")
        look, shape = LOOKS[index % len(LOOKS)], SHAPES[index % len(SHAPES)]
        lines.append(
            {
                "id": f"r{index}",
                "image": f"{index}.png",
                "perceptual": f"a {look} picture, {index}",
                "semantic": f"{index} of a {shape}",
            }
        )
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def towers(tiny_config: Path) -> Towers:
    return Towers.load(str(tiny_config), "random", CPU, "fp32")


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    return lambda index, **more: Record(f"r{index}", f"{index}.png", f"look {index}", f"thing {index}", **more)


def environment() -> dict[str, str]:
    """One thread, so that sums are the same in every process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def declip(arguments: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """``declip`` in a process of its own."""
    command = [sys.executable, "-m", "declip_sdk", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    return subprocess.Popen(command, **{**pipes, **options})
