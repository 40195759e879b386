"""The torch-free preprocessing of the runtime against open_clip's own transform."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import prepare
from declip_training.model.torchvision_ops import ensure_importable

ensure_importable()

from open_clip.transform import image_transform  # noqa: E402

SIZES = [
    (600, 400), (400, 600), (512, 512), (640, 427), (451, 300),
    (224, 224), (225, 224), (224, 225), (223, 300), (256, 1000), (1000, 256),
    (1920, 1080), (1080, 2400), (2000, 333), (333, 2000), (3001, 1999),
    (100, 80), (33, 47), (16, 400), (400, 16), (1, 1), (2, 3), (9, 700),
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 224, 336])
def test_every_pixel_is_open_clips(photos, size, interpolation):
    transform = image_transform(
        size, is_train=False, interpolation=interpolation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    spec = Preprocess(size=size, interpolation=interpolation)
    for number, shape in enumerate(SIZES):
        with Image.open(photos[number % len(photos)]) as photo:
            image = photo.convert("RGB").resize(shape)
        expected = np.rint(transform(image).numpy().transpose(1, 2, 0) * 255).astype(int)
        assert np.abs(prepare(image, spec)[0] - expected).max() <= 1, shape


def test_files_are_read_as_open_clip_reads_them(photos):
    from declip_runtime.images import open_image

    transform = image_transform(224, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for path in photos:
        with Image.open(path) as photo:
            expected = np.rint(transform(photo).numpy().transpose(1, 2, 0) * 255).astype(int)
        assert np.abs(prepare(open_image(path), Preprocess(size=224))[0] - expected).max() <= 1, path.name
