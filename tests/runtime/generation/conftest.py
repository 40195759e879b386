from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from declip_runtime.engine_file import EngineFile
from declip_runtime.generation.adapter import DPAdapter

from . import tiny_adapter, tiny_models
from .tiny_models import Models


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """So small models wait longer for a second thread than they compute, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sd() -> Models:
    return tiny_models.make("sd")


@pytest.fixture(scope="session")
def sdxl() -> Models:
    return tiny_models.make("sdxl", seed=1)


@pytest.fixture(scope="session")
def picture() -> Callable[[int], Image.Image]:
    """A picture of a number: another number, another picture."""

    def make(number: int) -> Image.Image:
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[[int], Image.Image]) -> Path:
    """A folder with the pictures a.png and b.png."""
    for number, name in enumerate(("a.png", "b.png")):
        picture(number).save(tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, sd: Models) -> EngineFile:
    return tiny_adapter.write(tmp_path_factory.mktemp("engine") / "sd.engine", sd)


@pytest.fixture
def adapter(engine: EngineFile) -> Iterator[DPAdapter]:
    """On the fake backend."""
    with DPAdapter(engine.path, backend="fake") as made:
        yield made
