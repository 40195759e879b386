from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from declip_runtime.errors import UsageError
from declip_runtime.images import open_image
from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import native_boxes, prepare

SPEC = Preprocess(size=224)


def reference(image: Image.Image, spec: Preprocess) -> np.ndarray:
    """Resize the shorter side, cut the centre out. That open_clip does just this is shown in tests/export."""
    width, height = image.size
    if width < height:
        width, height = spec.size, int(spec.size * height / width)
    else:
        width, height = int(spec.size * width / height), spec.size
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    resized = image.resize((width, height), filters[spec.interpolation])
    left, upper = round((width - spec.size) / 2.0), round((height - spec.size) / 2.0)
    return np.asarray(resized.crop((left, upper, left + spec.size, upper + spec.size)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(600, 400), (400, 600), (224, 224), (225, 300), (100, 80), (33, 700), (1999, 601), (500, 1501)]
)
def test_whole_view_is_resize_and_centre_crop(photo, size, interpolation):
    spec = Preprocess(size=224, interpolation=interpolation)
    image = photo.resize(size)
    view = prepare(image, spec)
    assert view.shape == (1, 224, 224, 3)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    assert np.array_equal(view[0], reference(image, spec))


@pytest.mark.parametrize("size", [(1, 1), (30000, 1), (1, 30000), (100_000, 2), (3, 200_000)])
def test_extreme_shapes_show_their_centre(size):
    view = prepare(Image.new("RGB", size, (10, 200, 30)), SPEC)
    assert np.array_equal(np.unique(view.reshape(-1, 3), axis=0), [[10, 200, 30]])


def test_a_strip_shows_its_own_centre_not_an_end():
    ramp = np.repeat(np.linspace(0, 255, 300_000).astype(np.uint8)[None, :, None], 3, axis=2)
    view = prepare(Image.fromarray(ramp), SPEC)
    assert 126 <= view.min() <= view.max() <= 129


@pytest.mark.parametrize("size", [(3999, 2999), (2999, 4001), (4000, 3000), (2500, 1801), (5003, 1500)])
@pytest.mark.parametrize("format_name", ["JPEG", "BMP"])
def test_fast_decoding_drifts_little(photo, size, format_name):
    buffer = io.BytesIO()
    photo.resize(size, Image.Resampling.LANCZOS).save(
        buffer, format_name, **({"quality": 92} if format_name == "JPEG" else {})
    )
    exact = prepare(open_image(buffer.getvalue()), SPEC).astype(int)
    fast = prepare(open_image(buffer.getvalue(), minimum_side=2 * SPEC.size), SPEC).astype(int)
    # a shift by half a pixel, as from the geometry of the shrunk size, would be 1.9 on average
    assert 0 < np.abs(fast - exact).mean() < 0.6


def test_fast_equals_exact_where_nothing_was_shrunk(photos):
    for path in photos:
        exact, fast = open_image(path), open_image(path, minimum_side=2 * SPEC.size)
        assert np.array_equal(prepare(exact, SPEC), prepare(fast, SPEC))


@pytest.mark.parametrize("views", [2, 3, 5, 10])
def test_native_views_are_the_pictures_own_pixels(photo, views):
    big = photo.resize((1300, 900))
    prepared = prepare(big, SPEC, views)
    assert prepared.shape == (views, 224, 224, 3)
    assert np.array_equal(prepared[0], prepare(big, SPEC)[0])
    array = np.asarray(big)
    for view, (left, upper, right, lower) in zip(prepared[1:], native_boxes(1300, 900, 224, views - 1), strict=True):
        assert np.array_equal(view, array[upper:lower, left:right])


def test_native_views_see_what_resizing_hides(photo):
    big = photo.resize((2400, 1600), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(0).normal(0, 6, (1600, 2400, 1))
    noisy = Image.fromarray(np.clip(np.asarray(big) + grain, 0, 255).astype(np.uint8))
    change = np.abs(prepare(noisy, SPEC, 5).astype(int) - prepare(big, SPEC, 5)).mean(axis=(1, 2, 3))
    assert change[0] < 1.5
    assert change[1:].min() > 4


def test_native_views_of_a_small_picture_are_enlarged(photo):
    small = photo.resize((150, 100))
    prepared = prepare(small, SPEC, 3)
    left, upper, right, lower = native_boxes(150, 100, 224, 2)[0]
    assert (right - left, lower - upper) == (100, 100)
    expected = small.crop((left, upper, right, lower)).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(prepared[1].astype(int) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize(
    "size", [(6000, 4000), (4000, 6000), (1000, 1000), (30000, 300), (224, 224), (1, 1), (10, 3000)]
)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 16])
def test_native_grid(size, count):
    boxes = native_boxes(*size, 224, count)
    assert len(boxes) == count
    assert boxes == native_boxes(*size, 224, count)
    side = min(224, *size)
    for left, upper, right, lower in boxes:
        assert (right - left, lower - upper) == (side, side)
        assert 0 <= left <= right <= size[0]
        assert 0 <= upper <= lower <= size[1]
    if min(size) >= 224 * count:
        assert len(set(boxes)) == count
    centres = np.array([[(b[0] + b[2]) / 2 / size[0], (b[1] + b[3]) / 2 / size[1]] for b in boxes])
    if min(size) >= 1000:
        assert np.abs(centres.mean(axis=0) - 0.5).max() < 0.1


def test_four_native_views_of_a_photo_are_its_quarters():
    assert native_boxes(6000, 4000, 200, 4) == [
        (1400, 900, 1600, 1100),
        (4400, 900, 4600, 1100),
        (1400, 2900, 1600, 3100),
        (4400, 2900, 4600, 3100),
    ]


def test_wrong_use(photo):
    with pytest.raises(UsageError, match="views=0"):
        prepare(photo, SPEC, 0)
    with pytest.raises(UsageError, match="mode L was given"):
        prepare(photo.convert("L"), SPEC)
    with pytest.raises(UsageError, match="no native resolution"):
        prepare(open_image(photo, minimum_side=100), SPEC, 2)
