"""Pictures on a GPU give the pixels that Pillow gives: by our kernel's source, run on the CPU by a stand-in for CUDA.

JPEGs are decoded by the genuine nvImageCodec, on the CPU, which it can.
"""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from declip_runtime import gpu_pictures
from declip_runtime.cuda import Stream
from declip_runtime.errors import (
    BackendExecutionError,
    BackendUnavailableError,
    BackendWarning,
    DeviceMemoryError,
    ImageDecodeError,
    ImageTooLargeError,
    InvalidArrayError,
    ScorerStateError,
)
from declip_runtime.gpu_pictures import GpuPictures
from declip_runtime.images import open_image
from declip_runtime.jpeg import Jpeg, read_jpeg
from declip_runtime.manifest import Preprocess
from declip_runtime.nvimagecodec import JpegDecoder, unavailable
from declip_runtime.pixels import Pixels
from declip_runtime.preprocess import prepare
from declip_runtime.resampling import Axis, taps
from declip_runtime.scorer import Scorer
from declip_runtime.tensors import DeviceTensor, exchange, of_capsule

from . import fake_nvidia, host_kernel, kernel_compiler, tiny_engine
from .fake_nvidia import Nvidia

SPEC = Preprocess(size=32)
VECTORS = Path(__file__).parents[1] / "vectors"
needs_codec = pytest.mark.skipif(unavailable() is not None, reason=f"nvImageCodec is for Linux: {unavailable()}")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return host_kernel.build(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def machine(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvidia]:
    monkeypatch.setattr(gpu_pictures, "JpegDecoder", lambda device: JpegDecoder(None))
    nvidia = fake_nvidia.install(monkeypatch, Nvidia(kernels={"resample": kernel}))
    monkeypatch.setattr(Foreign, "machine", nvidia)
    yield nvidia
    assert not any(nvidia.leaks().values())


def tensor(array: np.ndarray[Any, Any]) -> DeviceTensor:
    """An array in memory that the stand-in takes for a GPU's."""
    return DeviceTensor(array, 0, array.ctypes.data, str(array.dtype), array.shape, array.strides)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Noise, black and white: nothing rounds or overflows where it does not here."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    return np.where(random.random((height, width, 1)) < 0.5, pixels, 255 * (pixels > 127)).astype(np.uint8)


def prepared(
    source: DeviceTensor | Jpeg, spec: Preprocess = SPEC, views: int = 1, channels: str = "rgb"
) -> np.ndarray[Any, Any] | None:
    with closing(GpuPictures(0, spec, views, decodes=isinstance(source, Jpeg))) as on_gpu:
        return on_gpu.of_jpeg(source) if isinstance(source, Jpeg) else on_gpu.of_tensor(source, channels)


def expected(pixels: np.ndarray[Any, Any], spec: Preprocess = SPEC, views: int = 1) -> np.ndarray[Any, Any]:
    return prepare(Image.fromarray(pixels), spec, views)


# --- resizing


SIZES = ((32, 32), (64, 64), (33, 32), (100, 150), (150, 100), (20, 30), (7, 5), (1, 1))
EXTREME = ((32, 400), (400, 32), (700, 90), (5, 900))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [*SIZES, *EXTREME])
def test_pixels_are_pillows(machine: Nvidia, size: tuple[int, int], interpolation: Any) -> None:
    """Smaller, larger, as large; very wide, and so high that Pillow begins with the columns."""
    spec, pixels = Preprocess(size=32, interpolation=interpolation), picture(*size)
    np.testing.assert_array_equal(prepared(tensor(pixels), spec, 5), expected(pixels, spec, 5))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(16, 60),
    st.integers(1, 6),
    st.sampled_from(["bicubic", "bilinear"]),
)
@example(201, 2, 16, 2, "bicubic")  # Pillow 12.2 begins with the columns
@example(200, 2, 16, 2, "bicubic")
def test_pixels_are_pillows_at_any_size(
    machine: Nvidia, height: int, width: int, size: int, views: int, interpolation: Any
) -> None:
    spec, pixels = Preprocess(size=size, interpolation=interpolation), picture(height, width, seed=height)
    np.testing.assert_array_equal(prepared(tensor(pixels), spec, views), expected(pixels, spec, views))


def test_one_bench_for_pictures_of_many_sizes(machine: Nvidia) -> None:
    """Memory grows, tables come and go, and nothing of an earlier picture is left over."""
    with closing(GpuPictures(0, SPEC, 2)) as on_gpu:
        for number in [*range(12), *range(6)]:
            pixels = picture(40 + 29 * number, 180 - 11 * number, seed=number)
            np.testing.assert_array_equal(on_gpu.of_tensor(tensor(pixels), "rgb"), expected(pixels, SPEC, 2))
        assert len(machine.streams) == 1


def test_the_lines_of_a_pass_are_more_than_blocks(machine: Nvidia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("declip_runtime.cuda_kernel._MOST_BLOCKS", 2)
    pixels = picture(300, 200)
    np.testing.assert_array_equal(prepared(tensor(pixels)), expected(pixels))


def test_any_layout_in_memory(machine: Nvidia) -> None:
    """Planes, every second column, upside down, and OpenCV's order: strides say where pixels are."""
    pixels = picture(90, 70)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for view in (planes.transpose(1, 2, 0), pixels[:, ::2], pixels[::-1], pixels[5:, 3:]):
        np.testing.assert_array_equal(prepared(tensor(view), SPEC, 2), expected(view, SPEC, 2))
    np.testing.assert_array_equal(prepared(tensor(pixels), SPEC, 2, "bgr"), expected(pixels[..., ::-1], SPEC, 2))


@pytest.mark.parametrize("orientation", [*range(10), None, "6"])
def test_orientations_are_pillows(machine: Nvidia, orientation: object, tmp_path: Path) -> None:
    pixels = picture(50, 80)
    exif = Image.Exif()
    if isinstance(orientation, int):
        exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = np.asarray(open_image(tmp_path / "x.png"))
    turned = Pixels.of(tensor(pixels), "rgb").upright(orientation)
    assert (turned.height, turned.width) == upright.shape[:2]
    kept = np.ctypeslib.as_array((ctypes.c_uint8 * pixels.size).from_address(pixels.ctypes.data))
    offset = turned.address - pixels.ctypes.data
    strides = (turned.row, turned.column, turned.channel)
    seen = np.lib.stride_tricks.as_strided(kept[offset:], upright.shape, strides)
    np.testing.assert_array_equal(seen, upright)


def test_weights_of_a_filter() -> None:
    """They add up to 1, and stay within the picture at its edges."""
    for axis in (Axis(1000, 0, 1000, 224, 0, 224), Axis(100, 30, 20, 224, 3, 100), Axis(1, 0, 1, 7, 0, 7)):
        table = taps(axis, "bicubic").astype(np.int64)
        assert table.shape[0] == axis.count
        assert table[:, 0].min() >= 0
        assert (table[:, 0] + table[:, 1]).max() <= axis.length
        np.testing.assert_allclose(table[:, 2:].sum(axis=1) / (1 << 22), 1, atol=1e-5)


# --- tensors of other libraries


class Foreign:
    """What a library with GPU arrays hands out: a capsule that says its memory is a GPU's.

    As PyTorch it exports nothing of another than the current GPU, and waits for the thread that asks only.
    """

    machine: Nvidia | None = None

    def __init__(self, array: np.ndarray[Any, Any], device: int = 0, kind: int = 2) -> None:
        self._array, self._device, self._kind, self.ndim = array, device, kind, array.ndim
        self.streams: list[Any] = []
        self.threads: list[str] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._kind, self._device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        if self.machine is not None and self.machine.current != self._device:
            raise BufferError("Can't export tensors on a different CUDA device index")
        self.streams.append(stream)
        self.threads.append(threading.current_thread().name)
        capsule = self._array.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        ctypes.c_int32.from_address(get(capsule, b"dltensor") + 8).value = self._kind
        ctypes.c_int32.from_address(get(capsule, b"dltensor") + 12).value = self._device
        return capsule


class HostTensor:
    """A tensor of the host, of a library that knows nothing of NumPy."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array, self.ndim = array, array.ndim

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)


def scorer(tmp_path: Path, **options: Any) -> Scorer:
    engine = tiny_engine.write(tmp_path / "tiny.engine")
    return Scorer(engine.path, backend="openvino", precision="fp32", threads=2, cache_dir=tmp_path / "cache", **options)


def test_capsules(machine: Nvidia) -> None:
    array = picture(40, 50)
    whole = exchange(Foreign(array))
    assert isinstance(whole, DeviceTensor)
    assert (whole.address, whole.dtype) == (array.ctypes.data, "uint8")
    assert (whole.shape, whole.strides) == ((40, 50, 3), (150, 3, 1))
    part = of_capsule(array[3:, ::2].astype(np.float32).__dlpack__())
    assert (part.shape, part.strides, part.dtype) == ((37, 25, 3), (300, 12, 4), "float32")
    rows = list(exchange(Foreign(np.stack([array, array]))))
    assert [row.address - rows[0].address for row in rows] == [0, array.nbytes]


def test_tensors_score_as_arrays_do(machine: Nvidia, tmp_path: Path) -> None:
    """One or a batch, on the host or on a GPU, alone or in a list with others."""
    arrays = [picture(50, 70, seed) for seed in range(3)]
    with scorer(tmp_path, decode="exact") as scoring:
        wanted = scoring.score(arrays)["quality"]
        for kind in (Foreign, HostTensor):
            np.testing.assert_array_equal(scoring.score(kind(np.stack(arrays)))["quality"], wanted)
            np.testing.assert_array_equal(scoring.score([kind(a) for a in arrays])["quality"], wanted)
            np.testing.assert_array_equal(scoring.score([kind(np.stack(arrays[:2])), arrays[2]])["quality"], wanted)
            one = scoring.score(kind(arrays[0]))
            assert len(one) == 1
            assert one[0].quality == wanted[0]
        assert "cuda:0" in scoring.score(Foreign(np.stack(arrays)))[0].image


@pytest.mark.parametrize("kind", [2, 13])
def test_a_tensor_is_waited_for(machine: Nvidia, kind: int) -> None:
    """Its library is told which stream reads it, and what that stream still does is waited for."""
    foreign = Foreign(picture(4, 4), kind=kind)
    machine.events.clear()
    exchange(foreign)
    assert foreign.streams == [1]
    assert machine.events == ["use 0", "wait"]


def test_tensors_are_exported_by_the_thread_that_gives_them(machine: Nvidia, tmp_path: Path) -> None:
    """Its library waits for what that thread computes, and for nothing of the threads that decode."""
    single, batch, listed = Foreign(picture(9, 9)), Foreign(picture(18, 9).reshape(2, 9, 9, 3)), Foreign(picture(9, 9))
    with scorer(tmp_path) as scoring:
        for images in (single, batch, [listed, picture(9, 9)]):
            scoring.score(images)
        found = scoring.stream([Foreign(picture(9, 9))])
        assert next(found).error is None
    for tensor_ in (single, batch, listed):
        assert tensor_.threads == [threading.current_thread().name]


def test_a_scorer_that_is_closed_while_it_prepares(machine: Nvidia, tmp_path: Path) -> None:
    """What works is waited for, what comes later is refused, and nothing stays on the GPU."""
    scoring = scorer(tmp_path)
    found = scoring.stream(Foreign(picture(30 * 40, 30).reshape(40, 30, 30, 3)))
    next(found)
    scoring.close()
    with pytest.raises(ScorerStateError):
        list(found)


def test_many_threads_share_a_few_benches(machine: Nvidia) -> None:
    pixels = [picture(40 + n, 50, seed=n) for n in range(24)]
    with closing(GpuPictures(0, SPEC, 1)) as on_gpu, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda p: on_gpu.of_tensor(tensor(p), "rgb"), pixels))
        assert len(machine.streams) <= 4
    for one, wanted in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(one, expected(wanted))


def test_where_the_gpu_has_no_room_for_another_bench_one_must_do(
    machine: Nvidia, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(GpuPictures(0, SPEC, 1)) as on_gpu:
        machine.memory = machine.used
        machine.memory += 1 << 16  # for what lies between passes, not for another bench of this many results
        monkeypatch.setattr(gpu_pictures, "_Bench", _no_room)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda n: on_gpu.of_tensor(tensor(picture(40, 40, n)), "rgb"), range(12)))
    np.testing.assert_array_equal(found[7], expected(picture(40, 40, 7)))


def test_memory_that_ran_out_for_one_picture_is_not_used_for_the_next(machine: Nvidia) -> None:
    with closing(GpuPictures(0, SPEC, 1)) as on_gpu:
        on_gpu.of_tensor(tensor(picture(40, 40)), "rgb")
        memory, machine.memory = machine.memory, machine.used
        with pytest.raises(DeviceMemoryError):
            on_gpu.of_tensor(tensor(picture(400, 60)), "rgb")
        machine.memory = memory
        np.testing.assert_array_equal(on_gpu.of_tensor(tensor(picture(40, 40)), "rgb"), expected(picture(40, 40)))


def _no_room(*_: object) -> None:
    raise DeviceMemoryError("the GPU has too little free memory.")


@pytest.mark.parametrize(
    ("array", "fix"),
    [
        (np.zeros((3, 20, 20), np.uint8), r"permute\(1, 2, 0\)"),
        (np.zeros((20, 20, 3), np.float32), "torch.uint8"),
        (np.zeros((20, 20), np.uint8), "three dimensions"),
        (np.zeros((0, 20, 3), np.uint8), "no pixels"),
        (np.zeros((1, 1, 20, 20, 3), np.uint8), "three dimensions"),
    ],
)
def test_a_tensor_that_is_no_picture(machine: Nvidia, array: Any, fix: str, tmp_path: Path) -> None:
    foreign = Foreign(array)
    del foreign.ndim  # it need not say
    with scorer(tmp_path) as scoring:
        with pytest.raises(InvalidArrayError, match=fix):
            scoring.score(foreign)
        mixed = scoring.score([foreign, picture(9, 9)], on_error="record")
        assert [error is None for error in mixed.errors] == [False, True]


def test_a_tensor_that_is_too_large(machine: Nvidia, tmp_path: Path) -> None:
    with scorer(tmp_path, max_pixels=100) as scoring, pytest.raises(ImageTooLargeError, match="max_pixels"):
        scoring.score(Foreign(picture(20, 20)))


def test_a_library_that_does_not_give_its_memory(tmp_path: Path) -> None:
    class Closed(HostTensor):
        def __dlpack__(self, **options: Any) -> Any:
            raise AssertionError("it requires\ngrad")

    good, one, many = picture(9, 9), Closed(picture(4, 4)), Closed(picture(4, 4)[None])
    with scorer(tmp_path) as scoring:
        with pytest.raises(InvalidArrayError, match="it requires grad"):
            scoring.score(one)
        for images in ([one, many, good], iter([one, many, good])):
            found = scoring.score(images, on_error="record")
            assert [error is None for error in found.errors] == [False, False, True]


def test_without_cuda_bindings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with scorer(tmp_path) as scoring, pytest.raises(BackendUnavailableError, match="pip install 'cuda-bindings"):
        scoring.score(Foreign(picture(4, 4)))


def test_a_driver_that_does_not_read_the_kernel(machine: Nvidia) -> None:
    machine.ptx_error = "CUDA_ERROR_INVALID_PTX"
    with pytest.raises(BackendExecutionError, match=r"INVALID_PTX.*Update NVIDIA's driver"):
        GpuPictures(0, SPEC, 1)
    machine.ptx_error = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(DeviceMemoryError, match="too little free memory"):
        GpuPictures(0, SPEC, 1)


def test_another_gpu(machine: Nvidia, tmp_path: Path) -> None:
    machine.gpus.append(("Orin", 8, 7))
    array = picture(30, 30)
    with scorer(tmp_path) as scoring:
        wanted = scoring.score(array)[0].quality
        assert scoring.score(Foreign(array, device=1))[0].quality == wanted
        assert {device for _, size, device in machine.blocks.values() if size} == {1}
        with pytest.raises(BackendUnavailableError, match="no GPU 2"):
            scoring.score(Foreign(array, device=2))


# --- JPEGs


def encoded(pixels: np.ndarray[Any, Any], mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, **{"format": "JPEG", "quality": 90, **options})
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray[Any, Any]:
    """Like a photo: what decoders differ in is the least significant bit."""
    return np.asarray(Image.fromarray(picture(8, 8, 3)).resize((width, height), Image.Resampling.BICUBIC))


@needs_codec
def test_photos_are_those_of_the_cpu(machine: Nvidia) -> None:
    """Both decode by libjpeg-turbo here, so what would be left is our own difference."""
    for path in sorted(VECTORS.glob("*.jpg")):
        jpeg = read_jpeg(path, 10**9)
        assert jpeg is not None
        wanted = prepare(open_image(path), Preprocess(size=64), 5)
        np.testing.assert_array_equal(prepared(jpeg, Preprocess(size=64), 5), wanted)


@needs_codec
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_are_turned(machine: Nvidia, orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(smooth(60, 90), mode, exif=exif)
    jpeg = read_jpeg(content, 10**9)
    assert jpeg is not None
    np.testing.assert_array_equal(prepared(jpeg, SPEC, 3), prepare(open_image(content), SPEC, 3))


@needs_codec
def test_a_profile_is_applied_to_what_the_tower_sees(machine: Nvidia) -> None:
    """Not to the whole picture, as on the CPU: nearly the same, where colours are not cut off."""
    wide = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    place = wide.index(b"rXYZ")
    data = int.from_bytes(wide[place + 4 : place + 8], "big")
    wide[data + 8 : data + 12] = int(0.5 * 65536).to_bytes(4, "big")  # red that is redder than sRGB's
    photo = np.asarray(open_image(VECTORS / "astronaut.jpg"))
    content = encoded(photo, icc_profile=bytes(wide))
    jpeg = read_jpeg(content, 10**9)
    assert jpeg is not None
    assert jpeg.profile == bytes(wide)
    spec = Preprocess(size=224)
    found = prepared(jpeg, spec)
    assert found is not None
    wanted, plain = (prepare(open_image(c), spec).astype(int) for c in (content, encoded(photo)))
    assert np.abs(wanted - plain).mean() > 2, "the profile must matter"
    assert np.abs(found - wanted).mean() < 0.3
    assert np.quantile(np.abs(found - wanted), 0.99) <= 3


def test_which_files_a_gpu_decodes(tmp_path: Path) -> None:
    pixels = smooth(40, 50)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274] = 6
    for content in (
        encoded(pixels),
        encoded(pixels, "L"),
        encoded(pixels, progressive=True),
        encoded(pixels, subsampling=0),
        encoded(pixels, icc_profile=srgb),
        encoded(pixels, "L", icc_profile=srgb),  # of another colour model: counts as none
        encoded(pixels, exif=exif, comment="end \xff\xd9"),
        encoded(pixels) + b"and more",
        bytearray(encoded(pixels)),
        memoryview(encoded(pixels)),
    ):
        jpeg = read_jpeg(content, 10**9)
        assert jpeg is not None
        assert (jpeg.width, jpeg.height, jpeg.profile) == (50, 40, None)
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(pixels))
    assert read_jpeg(path, 10**9) == read_jpeg(str(path), 10**9) == read_jpeg(encoded(pixels), 10**9)
    whole = encoded(pixels, exif=exif, comment="end \xff\xd9")
    named = encoded(pixels, keep_rgb=True)  # by an Adobe mark, and by the names of its channels alone
    mark = named.index(b"\xff\xee")
    plain_rgb = named[:mark] + named[mark + 16 :]
    assert Image.open(io.BytesIO(plain_rgb)).info.get("adobe") is None
    for other in (
        encoded(pixels, format="PNG"),
        encoded(pixels, "CMYK"),
        encoded(pixels, keep_rgb=True),
        plain_rgb,
        whole[:-2],
        whole[: len(whole) * 2 // 3],
        io.BytesIO(whole),
        pixels,
        Image.fromarray(pixels),
    ):
        assert read_jpeg(other, 10**9) is None


def test_grey_with_a_profile_is_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(smooth(40, 50), "L", icc_profile=b"x" * 200)
    assert read_jpeg(content, 10**9) is not None
    monkeypatch.setattr("declip_runtime.jpeg.changes_colours", lambda profile, mode: True)
    assert read_jpeg(content, 10**9) is None


def test_what_is_wrong_with_a_file_is_told_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_jpeg(b"", 10**9) is read_jpeg(b"no picture at all", 10**9) is None  # for the CPU to say what it is
    with pytest.raises(ImageDecodeError, match="cannot be decoded"):
        read_jpeg(b"\xff\xd8\xff\xe0", 10**9)

    class Flaky(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("declip_runtime.jpeg.open_file", lambda path, name: Flaky())
    with pytest.raises(ImageDecodeError, match="Input/output error"):
        read_jpeg(tmp_path / "x.jpg", 10**9)
    with pytest.raises(ImageTooLargeError, match="max_pixels=100"):
        read_jpeg(encoded(smooth(40, 50)), 100)


@needs_codec
def test_scoring_a_folder_that_the_gpu_decodes(machine: Nvidia, tmp_path: Path) -> None:
    """Scores are those of every pixel; a PNG, CMYK and a file object go the usual way; broken ones are named."""
    good = [encoded(smooth(90, 60 + 10 * n)) for n in range(4)]
    others = [encoded(smooth(50, 50), format="PNG"), encoded(smooth(50, 50), "CMYK"), io.BytesIO(good[0])]
    broken = [good[0][: len(good[0]) // 2], b"\xff\xd8\xff\xe0", b""]
    with scorer(tmp_path, decode="exact") as exact:
        wanted = exact.score([*good, *others, *broken], on_error="record")
    with scorer(tmp_path, decode="gpu") as scoring:
        found = scoring.score([*good, *others, *broken], on_error="record")
        assert scoring.identity["decode"] == "gpu"
    np.testing.assert_array_equal(found["quality"], wanted["quality"])
    assert [str(error) for error in found.errors] == [str(error) for error in wanted.errors]


@needs_codec
def test_a_gpu_without_memory_leaves_photos_to_the_cpu_and_refuses_tensors(
    machine: Nvidia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos = [encoded(smooth(90, 60 + 10 * n)) for n in range(3)]
    with scorer(tmp_path, decode="exact") as exact:
        wanted = exact.score(photos)
    with scorer(tmp_path, decode="gpu") as scoring:
        monkeypatch.setattr(GpuPictures, "of_jpeg", _no_room)
        monkeypatch.setattr(GpuPictures, "of_tensor", _no_room)
        with pytest.warns(BackendWarning, match="decoded on the CPU"):
            found = scoring.score(photos)
        refused = scoring.score([Foreign(picture(60, 60))], on_error="record")
    np.testing.assert_array_equal(found["quality"], wanted["quality"])
    assert "more memory than its GPU has left" in str(refused.errors[0])


@needs_codec
def test_what_the_decoder_cannot_do_the_cpu_does(machine: Nvidia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JpegDecoder, "decode", lambda self, content, stream: None)
    jpeg = read_jpeg(encoded(smooth(40, 50)), 10**9)
    assert jpeg is not None
    assert prepared(jpeg) is None


@needs_codec
def test_the_decoder_gives_up_quietly(machine: Nvidia, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Stream()) as stream:
        decoder = JpegDecoder(None)
        capfd.readouterr()  # which decoders it lacks it says once
        for content in (b"", b"x", encoded(smooth(9, 9))[:200], encoded(smooth(300, 300))[:-3000]):
            assert decoder.decode(content, stream) is None
    said = capfd.readouterr()
    assert said.out == ""
    assert "nvimgcodec" not in said.err, "its log of every file (libjpeg's own line stays)"


def test_without_nvimagecodec(machine: Nvidia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_pictures, "JpegDecoder", JpegDecoder)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'declip-sdk\[nvimagecodec\]'"):
        scorer(tmp_path, decode="gpu")


@needs_codec
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvidia.install(monkeypatch, Nvidia(gpus=[]))
    with pytest.raises(BackendUnavailableError, match="no GPU"):
        scorer(tmp_path, decode="gpu")


@needs_codec
def test_nvimagecodec_itself_without_a_driver() -> None:
    """The genuine library, asked for a GPU where there is none: our exception, and no crash."""
    program = "from declip_runtime.nvimagecodec import JpegDecoder\nJpegDecoder(0)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert run.returncode == 1
    assert "BackendUnavailableError: nvImageCodec cannot start" in run.stderr


# --- the kernel that is shipped


def test_the_ptx_is_of_this_source() -> None:
    """``kernel_compiler`` writes it, and what it was made from."""
    ptx = (host_kernel.SOURCE.with_suffix(".ptx")).read_text()
    assert kernel_compiler.stamp(host_kernel.SOURCE.read_bytes()) in ptx
