"""Pictures that lie on a GPU, made ready for the tower there: only what the tower sees comes back to the host.

The pixels are those of ``prepare``, which works with Pillow on the CPU: same places, same weights, same rounding.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import cuda, nvimagecodec
from .color import to_srgb
from .cuda_kernel import Kernel
from .errors import BackendError, BackendUnavailableError, ScorerStateError
from .jpeg import Jpeg
from .manifest import Preprocess
from .nvimagecodec import JpegDecoder
from .pixels import Pixels
from .preprocess import centre, native_boxes
from .resampling import Axis, rows_first, taps
from .tensors import DeviceTensor

_CHANNELS = 3
_BLOCK = (32, 8)  # threads: along a row of results, and across
_MOST_BENCHES = 4  # each has a decoder, with memory of its own


def require_decoder() -> None:
    """Raise BackendUnavailableError where no GPU decodes: there is none, or no nvImageCodec."""
    reason = nvimagecodec.unavailable() or cuda.unavailable()  # what installs the former brings the latter
    if reason is not None:
        raise BackendUnavailableError(reason)


class GpuPictures:
    """Prepares pictures on GPU ``device`` as ``spec`` and ``views`` ask for. May be used from many threads at once.

    With ``decodes`` it also decodes JPEGs there.

    Raises BackendUnavailableError where there is no such GPU or no decoder, BackendExecutionError.
    """

    def __init__(self, device: int, spec: Preprocess, views: int, *, decodes: bool = False) -> None:
        cuda.gpu(device)
        cuda.use(device)
        self._device, self._spec, self._views, self._decodes = device, spec, views, decodes
        self._kernel = Kernel((files("declip_runtime") / "kernels" / "resample.ptx").read_bytes(), "resample")
        self._idle: queue.LifoQueue[_Bench] = queue.LifoQueue()
        self._change = threading.Condition()
        self._benches, self._working, self._closed = 0, 0, False
        try:
            self._idle.put(self._open())  # what cannot work shows now
        except BaseException:
            self._kernel.close()
            raise
        self._benches = 1

    def of_tensor(self, tensor: DeviceTensor, channels: str) -> NDArray[np.uint8]:
        """A picture uint8 [H, W, 3] on this GPU as uint8 [views, size, size, 3]; ``channels`` is its order."""
        with self._bench() as bench:
            return bench.prepare(Pixels.of(tensor, channels))

    def of_jpeg(self, jpeg: Jpeg) -> NDArray[np.uint8] | None:
        """A JPEG as uint8 [views, size, size, 3], None where the GPU does not decode it.

        An ICC profile is applied to the result, and not to the whole picture as on the CPU.
        """
        with self._bench() as bench:
            views = bench.decode(jpeg)
        if views is None or jpeg.profile is None:
            return views
        return np.stack([np.asarray(to_srgb(Image.fromarray(view), jpeg.profile)) for view in views])

    def close(self) -> None:
        """Free what is on the GPU, when the pictures that are being prepared are done."""
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: not self._working)
        cuda.use(self._device)
        while not self._idle.empty():
            self._idle.get().close()
        self._kernel.close()

    def _open(self) -> _Bench:
        decoder = JpegDecoder(self._device) if self._decodes else None
        return _Bench(self._kernel, self._spec, self._views, decoder)

    @contextmanager
    def _bench(self) -> Iterator[_Bench]:
        """One that nobody else works at, made where all are taken and there are not many yet."""
        with self._change:
            if self._closed:
                raise ScorerStateError("this scorer is closed. Make a new Scorer.")
            self._working += 1
        try:
            cuda.use(self._device)
            bench = self._another() if self._idle.empty() else None
            if bench is None:
                bench = self._idle.get()
            try:
                yield bench
            finally:
                self._idle.put(bench)
        finally:
            with self._change:
                self._working -= 1
                self._change.notify_all()

    def _another(self) -> _Bench | None:
        """One more, None where there are enough, or the GPU has no room: then those that there are must do."""
        with self._change:
            if self._benches >= _MOST_BENCHES:
                return None
            self._benches += 1
        try:
            return self._open()
        except BackendError:
            return None  # and it is not tried again


class _Bench:
    """A stream with memory and tables, for one thread at a time, on the current GPU."""

    def __init__(self, kernel: Kernel, spec: Preprocess, views: int, decoder: JpegDecoder | None) -> None:
        self._kernel, self._spec, self._views, self._decoder = kernel, spec, views, decoder
        self._stream = cuda.Stream()
        self._view_size = spec.size * spec.size * _CHANNELS
        self._results = cuda.DeviceMemory(views * self._view_size)
        self._host = cuda.PinnedMemory(views * self._view_size)
        self._between = cuda.DeviceMemory(1)
        self._taps: OrderedDict[Axis, cuda.DeviceMemory] = OrderedDict()

    def decode(self, jpeg: Jpeg) -> NDArray[np.uint8] | None:
        """The views of a JPEG, None where it is not decoded."""
        decoded = None if self._decoder is None else self._decoder.decode(jpeg.content, self._stream)
        if decoded is None or decoded.shape != (jpeg.height, jpeg.width, _CHANNELS) or decoded.dtype != "uint8":
            return None
        return self.prepare(Pixels.of(decoded, "rgb").upright(jpeg.orientation))

    def prepare(self, pixels: Pixels) -> NDArray[np.uint8]:
        """The views of a picture: uint8 [views, size, size, 3]. Its memory is not needed afterwards."""
        size, width, height = self._spec.size, pixels.width, pixels.height
        whole = centre(width, height, size)
        axes = [
            (Axis(width, 0, width, whole[0], whole[2], size), Axis(height, 0, height, whole[1], whole[3], size)),
        ]
        for left, upper, right, lower in native_boxes(width, height, size, self._views - 1):
            across = Axis(width, left, right - left, size, 0, size)
            axes.append((across, Axis(height, upper, lower - upper, size, 0, size)))
        for view, (across, down) in enumerate(axes):
            self._resize(pixels, across, down, self._results.address + view * self._view_size)
        self._stream.download(self._results, self._host, self._views * self._view_size)
        self._stream.wait()
        views: NDArray[np.uint8] = self._host.view.reshape(self._views, size, size, _CHANNELS).copy()
        return views

    def close(self) -> None:
        """Free everything."""
        self._host.close()
        for memory in (self._results, self._between, *self._taps.values()):
            memory.close()
        self._taps.clear()
        self._stream.close()

    def _resize(self, source: Pixels, across: Axis, down: Axis, target: int) -> None:
        """Two passes, the first only as far as the second one looks."""
        size = self._spec.size
        row, pixel = size * _CHANNELS, _CHANNELS
        if rows_first(across, down):
            start, end = self._needed(down)
            between = self._room((end - start) * row)
            self._pass(
                (source.address + start * source.row, source.row, source.column, source.channel),
                (between, row, pixel), across, end - start,
            )  # fmt: skip
            self._pass((between - start * row, pixel, row, 1), (target, pixel, row), down, size)
        else:
            start, end = self._needed(across)
            line = (end - start) * pixel
            between = self._room(size * line)
            self._pass(
                (source.address + start * source.column, source.column, source.row, source.channel),
                (between, pixel, line), down, end - start,
            )  # fmt: skip
            self._pass((between - start * pixel, line, pixel, 1), (target, row, pixel), across, size)

    def _pass(self, source: tuple[int, int, int, int], target: tuple[int, int, int], axis: Axis, lines: int) -> None:
        """Resize ``lines`` along an axis.

        Given are places, then how many bytes are between lines, between samples, between channels.
        """
        table = taps(axis, self._spec.interpolation)
        place, *steps = source
        goal, *goal_steps = target
        arguments: list[ctypes.c_void_p | ctypes.c_longlong | ctypes.c_int] = [
            ctypes.c_void_p(place),
            *map(ctypes.c_longlong, steps),
        ]
        arguments += [ctypes.c_void_p(goal), *map(ctypes.c_longlong, goal_steps)]
        arguments += [ctypes.c_void_p(self._on_gpu(axis, table).address)]
        arguments += [ctypes.c_int(number) for number in (table.shape[1] - 2, lines, axis.count)]
        self._kernel.launch(self._stream, (axis.count, lines), _BLOCK, arguments)

    def _needed(self, axis: Axis) -> tuple[int, int]:
        """The first sample that the axis is made of, and the one behind the last."""
        table = taps(axis, self._spec.interpolation)
        return int(table[0, 0]), int(table[-1, 0] + table[-1, 1])

    def _room(self, size: int) -> int:
        """The address of memory for what lies between the passes."""
        if self._between.size < size:
            self._stream.wait()  # which may be working there
            self._between.close()
            self._between = cuda.DeviceMemory(size)
        return self._between.address

    def _on_gpu(self, axis: Axis, table: NDArray[np.int32]) -> cuda.DeviceMemory:
        """The table in the GPU's memory, where the last few stay."""
        if axis in self._taps:
            self._taps.move_to_end(axis)
            return self._taps[axis]
        while len(self._taps) >= 2 * self._views + 14:  # those of one picture, and of some more
            self._stream.wait()
            self._taps.popitem(last=False)[1].close()
        host, memory = cuda.PinnedMemory(table.nbytes), cuda.DeviceMemory(table.nbytes)
        host.view[:] = table.view(np.uint8).ravel()
        self._stream.upload(host, memory, table.nbytes)
        self._stream.wait()
        host.close()
        self._taps[axis] = memory
        return memory
