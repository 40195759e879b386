"""Tiny pipelines, adapters and towers, each made once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from declip_export.generator.adapter import Adapter, load_adapter
from declip_export.generator.base import Base, load_base
from declip_export.generator.embedder import Embedder, load_embedder
from declip_runtime.generator_manifest import Family
from declip_training.model.checkpoint import ProjectorCheckpoint, save_projectors, tower_sha256
from declip_training.model.projector import Projector
from declip_training.model.tower import load_clip

from . import tiny

FAMILIES: tuple[Family, ...] = ("sd", "sdxl")
EACH_FAMILY = ("sd", pytest.param("sdxl", marks=pytest.mark.slow))
"""For what takes seconds: XL, whose components and graphs are compared in the first tier, joins in the second."""


@dataclass(frozen=True)
class Tiny:
    """Where tiny models are: pipelines and adapters by family, a tower's configuration, projectors for it."""

    folders: dict[str, Path]
    adapters: dict[str, Path]
    tower: Path
    projectors: Path

    def base(self, family: Family, dtype: Any = "float32") -> Base:
        return load_base(self.folders[family], dtype=dtype)

    def embedder(self, dtype: Any = "float32") -> Embedder:
        return load_embedder(str(self.tower), "random", self.projectors, dtype=dtype)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing by threads, and lose much where others compute at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("generators")
    folders, adapters = {}, {}
    for family in FAMILIES:
        made = tiny.pipeline(folder / f"source-{family}", sdxl=family == "sdxl")
        folders[family] = folder / family
        made.save_pretrained(folders[family])
        suffix = "safetensors" if family == "sd" else "bin"
        adapters[family] = tiny.save_adapter(tiny.adapter_state(made.unet), folder / f"adapter-{family}.{suffix}")
    config = {
        "embed_dim": tiny.EMBEDDING,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    tower = folder / "tiny-tower.json"
    tower.write_text(json.dumps(config), encoding="utf-8")
    return Tiny(folders, adapters, tower, _projectors(tower, folder / "projectors.safetensors"))


def _projectors(tower: Path, path: Path) -> Path:
    clip, _, _ = load_clip(str(tower), "random")
    generator = torch.Generator().manual_seed(0)
    perceptual = Projector(tiny.EMBEDDING, 48, "between").randomize(generator)
    semantic = Projector(tiny.EMBEDDING, 48, "before").randomize(generator)
    digest = tower_sha256(clip.visual)  # type: ignore[arg-type]
    save_projectors(path, ProjectorCheckpoint(str(tower), "random", digest, perceptual, semantic))
    return path


@dataclass(frozen=True)
class Loaded:
    """Everything that one engine is made of, in FP32."""

    base: Base
    adapter: Adapter
    embedder: Embedder


@pytest.fixture(scope="session", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, models: Tiny) -> Loaded:
    """Each family; do not change it."""
    return load(models, request.param)


@pytest.fixture(scope="session")
def loaded_sd(models: Tiny) -> Loaded:
    return load(models, "sd")


def load(models: Tiny, family: Family, dtype: Any = "float32") -> Loaded:
    base = models.base(family, dtype)
    return Loaded(base, load_adapter(models.adapters[family], base), models.embedder(dtype))
