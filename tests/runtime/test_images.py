from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, features

from declip_runtime import errors
from declip_runtime.errors import (
    ImageDecodeError,
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    InvalidArrayError,
    UsageError,
)
from declip_runtime.images import describe, open_image, shrunk_from, sources


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# --- pictures as they are in life


def test_every_good_picture_becomes_upright_rgb(hostile):
    for name, path in hostile.good.items():
        for minimum_side in (None, 50):
            image = open_image(path, minimum_side=minimum_side)
            assert image.mode == "RGB", name
            assert image.width >= image.height, name
            image.getpixel((0, 0))


def test_every_bad_picture_is_its_own_error_and_names_itself(hostile):
    for path, error_name in hostile.bad.values():
        for minimum_side in (None, 50):
            with pytest.raises(getattr(errors, error_name)) as caught:
                open_image(path, minimum_side=minimum_side)
            assert type(caught.value).__name__ == error_name
            message = str(caught.value)
            assert message.startswith(repr(str(path)))
            assert message.isprintable(), message
            assert message.endswith(".")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo, format_name, orientation):
    upright = photo.resize((96, 64))
    method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # the inverse of what a viewer does
    stored = upright if method is None else upright.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_name, {})
    data = encoded(stored, format_name, exif=exif, **options)
    opened = open_image(data)
    assert opened.size == (96, 64)
    assert np.abs(pixels(opened) - pixels(upright)).max() <= (40 if format_name == "JPEG" else 0)
    small = open_image(data, minimum_side=32)
    assert small.size == (48, 32)
    assert shrunk_from(small) == (96, 64, 2)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_counts_as_upright(photo):
    data = encoded(photo, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(data).size == photo.size


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    for format_name in ("PNG", "TIFF"):
        opened = pixels(open_image(encoded(Image.fromarray(ramp), format_name)))
        assert np.array_equal(opened, np.repeat((ramp >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.float32), np.full((4, 4), -5, np.int32)])
def test_pixels_without_a_defined_white_are_refused(array):
    with pytest.raises(ImageDecodeError, match="no defined white"):
        open_image(Image.fromarray(array))


def test_transparency_lies_on_white():
    clear_black = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    grey = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert open_image(clear_black).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(half_black).getpixel((0, 0)) == (127, 127, 127)
    assert open_image(grey).getpixel((0, 0)) == (127, 127, 127)
    assert open_image(encoded(palette, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert open_image(encoded(keyed, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


def test_first_frame_of_an_animation(photo):
    first, second = photo.resize((60, 40)), Image.new("RGB", (60, 40), "lime")
    for format_name, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(first, format_name, save_all=True, append_images=[second], **options)
        assert np.array_equal(pixels(open_image(data)), pixels(first))


def test_cmyk_jpeg_has_the_colours_of_its_rgb(photo):
    rgb = photo.resize((60, 40))
    opened = open_image(encoded(rgb.convert("CMYK"), "JPEG", quality=98))
    assert np.abs(pixels(opened) - pixels(rgb)).mean() < 6


# --- colour profiles


def adobe_to_srgb(colour: np.ndarray) -> np.ndarray:
    """Adobe RGB (1998) to sRGB by the matrices of the two standards, both with white D65."""
    to_xyz = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
    from_xyz = np.array([[3.24097, -1.53738, -0.49861], [-0.96924, 1.87597, 0.04156], [0.05563, -0.20398, 1.05697]])
    linear = np.clip(((colour / 255) ** (563 / 256)) @ to_xyz.T @ from_xyz.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def test_wide_gamut_profile_is_converted(make_profile):
    colours = np.random.default_rng(0).integers(40, 200, (20, 20, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(colours), "PNG", icc_profile=make_profile())
    opened = pixels(open_image(data))
    assert np.abs(opened - adobe_to_srgb(colours)).max() < 2
    assert np.abs(opened - colours).max() > 10


def test_srgb_profile_of_any_maker_changes_no_pixel(make_profile):
    values = np.linspace(0, 1, 1024)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    curve = tuple(np.round(linear * 65535).astype(int).tolist())
    # the numbers of the commonest one, which LittleCMS would convert with differences of 1
    common = make_profile((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410), curve)
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), common):
        opened = open_image(encoded(Image.fromarray(colours), "PNG", icc_profile=profile))
        assert np.array_equal(pixels(opened), colours)


def test_unusable_profiles_count_as_none(photo, make_profile):
    grey = photo.convert("L")
    for image, profile in ((photo, b"not a profile"), (photo, make_profile()[:200]), (grey, make_profile())):
        opened = open_image(encoded(image, "PNG", icc_profile=profile))
        assert np.array_equal(pixels(opened), pixels(image.convert("RGB")))


def test_lab_picture(photo):
    rgb = photo.resize((60, 40))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    opened = open_image(to_lab.apply(rgb))
    assert np.abs(pixels(opened) - pixels(rgb)).mean() < 3


# --- fast decoding


@pytest.mark.parametrize(
    ("format_name", "size", "factor"),
    [
        ("JPEG", (899, 599), 1),
        ("JPEG", (901, 601), 2),
        ("JPEG", (2000, 1100), 2),  # libjpeg scales by powers of two
        ("JPEG", (5000, 2411), 8),
        ("JPEG", (5000, 5000), 16),  # by 8 while decoding, by 2 afterwards
        ("BMP", (899, 599), 1),
        ("BMP", (2000, 1100), 3),
        ("BMP", (5000, 2411), 8),
    ],
)
def test_fast_never_falls_below_the_minimum_side(photo, format_name, size, factor):
    data = encoded(photo.resize(size), format_name)
    opened = open_image(data, minimum_side=300)
    assert min(opened.size) >= 300
    assert shrunk_from(opened) == (*size, factor)
    assert shrunk_from(open_image(data)) == (*size, 1)


def test_fast_reads_a_progressive_and_a_cmyk_jpeg(photo):
    big = photo.resize((1200, 800))
    for image, options in ((big, {"progressive": True}), (big.convert("CMYK"), {})):
        opened = open_image(encoded(image, "JPEG", **options), minimum_side=100)
        assert opened.size == (150, 100)
        reference = big.reduce(8)
        assert np.abs(pixels(opened) - pixels(reference)).mean() < 6


def test_fast_leaves_a_pil_image_as_it_was(photo):
    with Image.open(io.BytesIO(encoded(photo, "JPEG"))) as image:
        assert open_image(image, minimum_side=100).size == (150, 100)
        assert image.size == photo.size
        assert open_image(image).size == photo.size


def test_a_note_of_shrinking_does_not_survive_a_crop(photo):
    opened = open_image(photo, minimum_side=100)
    assert shrunk_from(opened) == (600, 400, 4)
    assert shrunk_from(opened.crop((0, 0, 90, 80))) == (90, 80, 1)


# --- limits


def test_pixel_limit_is_checked_before_decoding(hostile, photo):
    with pytest.raises(ImageTooLargeError, match=r"20000 x 20000 pixels, more than max_pixels=250,000,000"):
        open_image(hostile.bad["bomb.png"][0])
    for source in (encoded(photo, "JPEG"), photo, np.asarray(photo)):
        assert open_image(source, max_pixels=600 * 400).size == (600, 400)
        with pytest.raises(ImageTooLargeError, match="600 x 400"):
            open_image(source, max_pixels=600 * 400 - 1)


@pytest.mark.parametrize(("format_name", "options"), [("PNG", {}), ("TIFF", {"compression": "group4"})])
def test_a_hundred_megapixels_open_without_pillows_warning(format_name, options):
    data = encoded(Image.new("1", (10000, 10000), 1), format_name, **options)
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(data, minimum_side=448).getpixel((7, 7)) == (255, 255, 255)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_own_limit_does_not_apply(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format_name in ("JPEG", "PNG", "TIFF", "GIF", "BMP"):
            assert open_image(encoded(photo, format_name)).size == photo.size


def test_a_side_that_no_photo_has():
    with pytest.raises(ImageTooLargeError, match="no photo is so long"):
        open_image(np.zeros((1, (1 << 24) + 1, 3), np.uint8))


# --- sources


def test_all_sources_of_one_picture_are_equal(photos):
    path = photos[0]
    data = path.read_bytes()
    with Image.open(path) as image:
        reference = pixels(image.convert("RGB"))
    array = reference.astype(np.uint8)
    for source in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), array):
        assert np.array_equal(pixels(open_image(source)), reference), describe(source)
    with path.open("rb") as file, Image.open(path) as image:
        assert np.array_equal(pixels(open_image(file)), reference)
        assert np.array_equal(pixels(open_image(image)), reference)
    assert np.array_equal(pixels(open_image(array[..., ::-1], channels="bgr")), reference)


def test_file_object_is_left_where_it_stood(photos):
    with photos[0].open("rb") as file:
        file.seek(10)
        open_image(file)
        assert file.tell() == 10
        assert not file.closed


def test_stream_without_seek_is_read_to_its_end(photos):
    read_end, write_end = os.pipe()
    writer = threading.Thread(target=lambda: os.fdopen(write_end, "wb").write(photos[0].read_bytes()))
    with os.fdopen(read_end, "rb") as pipe:
        writer.start()
        assert open_image(pipe).mode == "RGB"
    writer.join()


def test_unreadable_file_objects(photos):
    with photos[0].open("rb") as file:
        pass
    with pytest.raises(ImageDecodeError, match="closed file"):
        open_image(file)
    with pytest.raises(UsageError, match=r"gives str, not bytes\. Open it in binary mode"):
        open_image(io.StringIO("text"))
    with photos[0].open(encoding="utf-8") as file, pytest.raises(UsageError, match="binary mode"):
        open_image(file)


def test_closed_or_truncated_pil_images_are_image_errors(photos, broken_photo):
    with Image.open(photos[0]) as closed:
        pass
    with Image.open(broken_photo) as truncated, pytest.raises(ImageDecodeError, match="truncated") as caught:
        open_image(truncated)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ImageDecodeError):
        open_image(closed)


@pytest.mark.parametrize("source", [42, {"a": 1}, object(), 3.5, [1, 2]])
def test_what_can_be_no_picture(source):
    with pytest.raises(UsageError, match=r"is no image\. Give a path, bytes"):
        open_image(source)


def test_none_is_an_error_of_one_picture():
    with pytest.raises(ImageNotFoundError, match=r"cv2\.imread"):
        open_image(None)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_pixels_is_an_error_of_one_picture(size):
    with pytest.raises(ImageDecodeError, match="no pixels"):
        open_image(Image.new("RGB", size))


def test_wrong_options(photo):
    with pytest.raises(UsageError, match="'rgb' or"):
        open_image(photo, channels="grb")
    with pytest.raises(UsageError, match="minimum_side=0"):
        open_image(photo, minimum_side=0)


@pytest.mark.parametrize(
    ("array", "given", "advice"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 \[4, 5, 3\]", r"array \* 255"),
        (np.full((4, 5, 3), 200.0), r"float64 \[4, 5, 3\]", r"astype\('uint8'\)"),
        (np.full((4, 5, 3), np.nan), r"float64 \[4, 5, 3\]", "NaN"),
        (np.zeros((4, 5, 3), np.int64), r"int64 \[4, 5, 3\]", r"astype\('uint8'\)"),
        (np.zeros((4, 5, 3), bool), r"bool \[4, 5, 3\]", r"array \* numpy\.uint8\(255\)"),
        (np.zeros((4, 5), np.uint8), r"uint8 \[4, 5\]", "numpy.stack"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"uint8 \[2, 4, 5, 3\]", "one by one"),
        (np.zeros(5, np.uint8), r"uint8 \[5\]", "1 dimensions"),
        (np.zeros((3, 40, 50), np.uint8), r"uint8 \[3, 40, 50\]", r"transpose\(1, 2, 0\)"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \[4, 5, 4\]", "alpha"),
        (np.zeros((4, 5, 2), np.uint8), r"uint8 \[4, 5, 2\]", "2 channels"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \[0, 5, 3\]", "no pixels"),
        (np.zeros((0, 5, 3)), r"float64 \[0, 5, 3\]", "Its values"),
    ],
)
def test_wrong_arrays_name_what_was_given_and_what_is_wanted(array, given, advice):
    with pytest.raises(InvalidArrayError, match=rf"{given} was given, wanted is uint8 \[H, W, 3\].*{advice}"):
        open_image(array)


def test_the_advice_for_a_mask_keeps_what_it_shows():
    mask = np.zeros((4, 5, 3), bool)
    mask[1] = True
    with pytest.raises(InvalidArrayError) as caught:
        open_image(mask)
    advised = str(caught.value).removesuffix(".").rpartition("as with ")[2]
    picture = open_image(eval(advised, {"array": mask, "numpy": np}))
    assert np.array_equal(np.asarray(picture), np.where(mask, 255, 0))


def test_sources():
    one = np.zeros((4, 5, 3), np.uint8)
    for single in ("a.jpg", Path("a.jpg"), b"data", io.BytesIO(), Image.new("RGB", (1, 1)), one, None):
        assert list(sources(single)) == [single]
    assert [a.shape for a in sources(np.zeros((7, 4, 5, 3), np.uint8))] == [(4, 5, 3)] * 7
    assert list(sources(np.array(["a.jpg", "b.jpg"]))) == ["a.jpg", "b.jpg"]
    assert list(sources(name for name in ("a", "b"))) == ["a", "b"]
    assert list(sources([])) == []
    assert [np.shape(a) for a in sources([one, np.zeros((2, 4, 5, 3), np.uint8), one])] == [(4, 5, 3)] * 4
    assert [np.shape(a) for a in sources(np.array("a.jpg"))] == [()]  # refused as a picture, not iterated


@pytest.mark.parametrize("kind", ["PIL image", "file object"])
def test_threads_that_open_one_object_take_turns(kind, photo, tmp_path):
    """Without turns some of them get half of the picture, or an error that its file does not deserve."""
    path = tmp_path / "photo.jpg"
    photo.resize((1200, 800)).save(path)
    wanted = pixels(open_image(path))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(6):
            with Image.open(path) if kind == "PIL image" else path.open("rb", buffering=0) as shared:
                for opened in pool.map(open_image, [shared] * 8):
                    assert np.array_equal(pixels(opened), wanted)


def test_descriptions_are_printable_and_hold_no_content(photo):
    for source in ("a\nb.jpg", "\udcff.jpg", Path("c.jpg"), b"secret" * 1000, io.BytesIO(b"secret"), photo, None, 3):
        text = describe(source)
        assert text.isprintable()
        assert "secret" not in text
        assert len(text) < 80


# --- files that are more than they seem


def test_unknown_content_is_named_by_its_first_bytes():
    with pytest.raises(ImageDecodeError, match=r"begins with b'<!DOCTYPE ht'\. Readable here: JPEG, PNG, "):
        open_image(b"<!DOCTYPE html><html>Not found</html>")


def test_formats_that_run_other_programs_are_not_opened():
    with pytest.raises(ImageDecodeError, match="known format"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_camera_raw_is_not_scored_by_its_thumbnail(photo, tags):
    info = Image.Exif()
    for tag, value in tags.items():
        info[tag] = value
    with pytest.raises(ImageDecodeError, match="camera raw file"):
        open_image(encoded(photo.resize((60, 40)), "TIFF", exif=info))


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    """The first box of an ISO base media file, and some of the next."""
    brands = b"".join(compatible)
    return (16 + len(brands)).to_bytes(4, "big") + b"ftyp" + major + b"\0\0\0\0" + brands + b"\0\0\1\0metaheicavif"


@pytest.mark.parametrize(
    ("data", "kind", "fix"),
    [
        *((ftyp(brand, b"mif1"), "HEIC or HEIF", "register_heif_opener") for brand in (b"heic", b"heix", b"hevc")),
        *((ftyp(brand, b"mif1", b"heic"), "HEIC or HEIF", "Export it as JPEG") for brand in (b"mif1", b"msf1")),
        (ftyp(b"crx ", b"crx ", b"isom"), "camera raw", "Export it as JPEG"),
        (b"FUJIFILMCCD-RAW 0201FF", "camera raw", "Export it as JPEG"),
        (b"IIU\0\x18\0\0\0", "camera raw", "Export it as JPEG"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL", "Export it as JPEG"),
        (ftyp(b"isom", b"mp41"), "video", "frames"),
    ],
)
def test_formats_of_cameras_and_phones_are_named_with_the_fix(monkeypatch, data, kind, fix):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # the command line registers it where it is installed
    with pytest.raises(ImageDecodeError, match=rf"^<bytes, \d+ B> is an? {kind}.*\. .*{fix}.*\.$"):
        open_image(data)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_under_a_general_brand_is_read(photo):
    data = encoded(photo.resize((64, 48)), "AVIF")
    assert data[8:12] == b"avif"
    assert open_image(data[:8] + b"mif1" + data[12:]).size == (64, 48)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes and devices")
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin"])
def test_devices_are_refused_without_opening_them(path):
    code = f"from declip_runtime.images import open_image; open_image({path!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, capture_output=True, text=True, timeout=30, check=False
    )
    assert "ImageNotFoundError: '/dev/" in done.stderr


@pytest.fixture
def ordinary_user():
    """Root may read everything, so be somebody else for a moment."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no user ids to take permissions from")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_no_permission(ordinary_user):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.jpg"
        path.write_bytes(b"")
        path.chmod(0)
        with pytest.raises(ImageNotFoundError, match="may not be read by this user"):
            open_image(path)
        Path(folder).chmod(0)
        with pytest.raises(ImageNotFoundError, match="may not be read by this user"):
            open_image(path)
        Path(folder).chmod(0o700)


def test_truncation_is_an_error_in_every_format(photo):
    small = photo.resize((150, 100))
    for format_name in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"):
        data = encoded(small, format_name)
        for share in (0.2, 0.5, 0.9):
            with pytest.raises(ImageDecodeError):
                open_image(data[: int(len(data) * share)])


# --- damaged files

_SMALL = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
_EXIF = Image.Exif()
_EXIF[ExifTags.Base.Orientation] = 6
_FILES = {
    "jpeg": encoded(_SMALL, "JPEG", exif=_EXIF),
    "progressive": encoded(_SMALL, "JPEG", progressive=True),
    "cmyk": encoded(_SMALL.convert("CMYK"), "JPEG"),
    "png": encoded(_SMALL, "PNG", exif=_EXIF),
    "palette": encoded(_SMALL.quantize(8), "PNG", transparency=1),
    "gif": encoded(_SMALL, "GIF", save_all=True, append_images=[_SMALL.rotate(90)]),
    "webp": encoded(_SMALL, "WEBP", exif=_EXIF),
    "tiff": encoded(_SMALL, "TIFF", exif=_EXIF),
    "tiff-lzw": encoded(_SMALL, "TIFF", compression="tiff_lzw"),
    "bmp": encoded(_SMALL, "BMP"),
}


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(_FILES)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
    minimum_side=st.sampled_from([None, 8]),
)
def test_damaged_files_give_a_picture_or_an_image_error(kind, edits, length, minimum_side):
    data = bytearray(_FILES[kind])
    for position, value in edits:
        # the square puts half of the damage into the first quarter, where headers are
        data[int(position**2 * len(data))] = value
    del data[int(length * len(data)) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(bytes(data), minimum_side=minimum_side, max_pixels=1_000_000)
        except ImageError:
            return
    assert image.mode == "RGB"
    image.getpixel((0, 0))
