"""The public data of the recipe as miniatures, and the recipe set to a world so small: seconds instead of hours."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from declip_training.coop import CoopConfig
from declip_training.data.batches import BatchShape
from declip_training.pretrain import PretrainConfig
from declip_training.projectors import ProjectorConfig
from declip_training.recipes import nano, nano_attributes, nano_data, nano_features, nano_settings, nano_validation
from declip_training.refit import RefitConfig, ReorderConfig

SIDE, SMALLER = 64, 48
RATED = 180  # of each of the three subsets, a tenth of which chooses
CAPTIONED, CAPTIONED_TEST = 60, 12


def make_data(root: Path) -> Path:
    """Photos in the layouts of all clones; the brighter one of BIQ2021, the better people liked it."""
    rng = np.random.default_rng(0)

    def picture(brightness: float, side: int = SIDE) -> Image.Image:
        small = rng.integers(-30, 31, (6, 6, 3)) + 30 + 190 * brightness
        pixels: npt.NDArray[np.uint8] = small.clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)

    def save(folder: str, name: str, brightness: float, side: int = SIDE) -> Path:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(brightness, side).save(path)
        return path

    def copies(folder: str, form: str, count: int, side: int = SIDE) -> None:
        """As many files as the recipe asks for, of few pictures."""
        originals = [save(folder, f"{i:04}.{form}", 0.3 + 0.02 * i, side) for i in range(min(count, 20))]
        for i in range(len(originals), count):
            os.link(originals[i % len(originals)], root / folder / f"{i:04}.{form}")

    for split, count in (("Train", RATED), ("Test", 6)):
        rows = ["Image Name,MOS"]
        for subset in ("ss01", "ss02", "ss03"):
            for i in range(count):
                name = f"{subset} ({split} {i}).jpg"
                save("BIQ2021/Images", name, i / count)
                rows.append(f"{name},{0.1 + 0.8 * i / count:.4f}")
        (root / "BIQ2021" / f"{split} (Images and MOS).csv").write_text("\n".join(rows) + "\n")
    copies("codec-corpus/CID22/CID22-512/training", "png", 20)
    copies("codec-corpus/CID22/CID22-512/validation", "png", 41)
    copies("codec-corpus/kodak", "png", 24)
    for split, count in (("train", 20), ("val", 20), ("test", 200)):
        copies(f"BSDS500/BSDS500/data/images/{split}", "jpg", count)
    copies("imagenet-sample", "JPEG", 960, SMALLER)
    copies("flickr8k/data/images", "jpg", CAPTIONED + CAPTIONED_TEST)
    names = [f"{i:04}.jpg" for i in range(CAPTIONED + CAPTIONED_TEST)]
    texts = root / "flickr8k" / "Flickr8k_text"
    texts.mkdir()
    (texts / "Flickr8k.token.txt").write_text("".join(f"{name}#0\tThing number {name[:4]} .\n" for name in names))
    (texts / "Flickr_8k.testImages.txt").write_text("\n".join(names[CAPTIONED:]) + "\n")
    for number in range(6):
        stem = f"Sony_4_200_{(1600, 3200, 6400)[number // 2]}_door_{number}"
        save("polyu/CroppedImages", f"{stem}_mean.JPG", 0.5)
        save("polyu/CroppedImages", f"{stem}_real.JPG", 0.4)
    return root


def shrink(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set the recipe to ``SIDE`` pixels, small batches, few steps, three photos for ladders to choose and judge by."""
    config = json.loads(nano.MODEL_CONFIG.read_text(encoding="utf-8"))
    config["vision_cfg"]["image_size"] = SIDE
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    (folder / "declip-nano-miniature.json").write_text(json.dumps(config))
    monkeypatch.setattr(nano, "MODEL_CONFIG", folder / "declip-nano-miniature.json")
    for module in (nano, nano_data, nano_features, nano_validation):
        monkeypatch.setattr(module, "SIDE", SIDE)
    for module in (nano_data, nano_features, nano_validation):
        monkeypatch.setattr(module, "LADDER_SIDES", (SIDE, SMALLER))
    monkeypatch.setattr(nano_data, "CAPTIONED_SIDE", SMALLER)
    monkeypatch.setattr(nano_validation, "LADDER_PHOTOS", 1)
    monkeypatch.setattr(nano_data, "FLICKR8K_TEST", CAPTIONED_TEST)
    shape = BatchShape(rated=(4, 4, 4), ladders=2, captioned=4, extra_captions=8, distorted_captions=0.7)
    monkeypatch.setattr(nano, "TOWER_SHAPE", shape)
    monkeypatch.setattr(nano, "BANK_SHAPE", shape)
    for module in (nano, nano_features):
        monkeypatch.setattr(module, "BANK_PLAN", [(10**6 + i, SMALLER) for i in range(8)])
    monkeypatch.setattr(nano, "RefitConfig", partial(RefitConfig, steps=10, rated=32, check_every=10))
    monkeypatch.setattr(
        nano, "ReorderConfig", partial(ReorderConfig, steps=10, merged=2, lr=3e-4, rated=32, check_every=10)
    )
    monkeypatch.setattr(nano, "ProjectorConfig", partial(ProjectorConfig, steps=20, check_every=20))
    monkeypatch.setattr(nano, "CoopConfig", partial(CoopConfig, steps=2))
    monkeypatch.setattr(nano_attributes, "COOP", CoopConfig(tokens=24, steps=2))
    monkeypatch.setattr(nano_features, "ATTRIBUTE_PHOTOS", 1)
    crops = ((1.0, SMALLER),)
    monkeypatch.setattr(nano_settings, "PRETRAIN", PretrainConfig(crops=crops, warmup=1))
    for name in ("validation", "judging"):
        whole = getattr(nano_data.Sources, name).fget
        monkeypatch.setattr(nano_data.Sources, name, property(lambda sources, whole=whole: whole(sources)[:3]))
