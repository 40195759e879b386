"""A tiny world for training tests: photos with opinions, captions and a CLIP of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from declip_training.data.batches import BatchShape, BatchSource
from declip_training.data.biq2021 import Rated
from declip_training.data.flickr8k import Captioned

SIDE = 64


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("config") / "tiny-train.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def tiny_clip(tiny_config: Path) -> tuple[Any, Any, Any]:
    from declip_training.model.tower import load_clip

    return load_clip(str(tiny_config), "random")


@pytest.fixture(scope="session")
def photos() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """60 smooth random pictures uint8 [60, 64, 64, 3]; opinions follow their contrast."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    contrast = np.linspace(0.1, 1.0, 60)[:, None, None, None]
    small = (128 + (small - 128.0) * contrast).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in small])


@pytest.fixture(scope="session")
def source(photos: np.ndarray[Any, np.dtype[np.uint8]]) -> BatchSource:
    rated = [Rated(Path(f"{i}.jpg"), i / 59, ("ss01", "ss02", "ss03")[i % 3]) for i in range(60)]
    captioned = [Captioned(Path(f"{i}.jpg"), (f"thing number {i}", f"object {i}")) for i in range(60)]
    # an untrained tower hardly sees faults of lens, processing, hand and signal on smooth pictures
    hardly = (
        "colour fringes", "banding", "halos", "smearing", "camera shake", "interference", "dropouts", "jitter",
        "accident",
    )  # fmt: skip
    plain = dict.fromkeys(("camera grain", *hardly), 0.0)
    shape = BatchShape(
        rated=(4, 4, 4), ladders=3, captioned=4, extra_captions=4, distorted_captions=0.5, ladder_odds=plain
    )
    enlarged = np.repeat(np.repeat(photos[30:], 2, axis=1), 2, axis=2)
    return BatchSource(rated, photos, (photos[30:], enlarged), captioned, photos, shape, seed=3)
