"""From images to scores with an engine that is loaded: prepared in threads, run in batches, answered in order."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .backends.base import Backend
from .calibration import calibrate
from .cpu import available_cpus
from .engine_file import EngineFile
from .errors import (
    BackendExecutionError,
    BackendWarning,
    DeviceMemoryError,
    ImageTooLargeError,
    ScorerStateError,
)
from .gpu_pictures import GpuPictures
from .images import Source, check_size, describe, open_image
from .jpeg import read_jpeg
from .loader import Loader, Prepared
from .options import OnError, Options
from .preprocess import prepare
from .scores import Score
from .tensors import DeviceTensor, exchange, is_tensor, require_device_picture

_Results: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Calibrated scores [n, K] and embeddings [n, D]."""

_PATIENCE = 0.05
"""Seconds that prepared images wait for company where their source may wait for their answers."""


class Pipeline:
    """One engine on one backend, as ``options`` ask for it. May be used from many threads at once."""

    def __init__(self, engine: EngineFile, backend: Backend, options: Options) -> None:
        self._engine, self._backend, self._options = engine, backend, options
        self._threads = options.threads or available_cpus()
        # However many threads score at once, no more pictures are decoded at a time. The model takes none of these
        # turns, not even where there is one thread: a picture may be a pipe that waits, and would hold back answers.
        self._decoding = threading.BoundedSemaphore(self._threads)
        self._gpus: dict[int, GpuPictures] = {}
        self._opening = threading.Lock()
        self._closed = False
        if options.decode == "gpu":
            self._gpu(self._decodes_on)  # what cannot work shows now

    @property
    def batch_size(self) -> int:
        """Views that go through the model at once."""
        return self._options.batch_size or self._backend.preferred_batch

    def close(self) -> None:
        """Free what pictures take on GPUs, when those being prepared there are done."""
        with self._opening:
            self._closed = True
            gpus, self._gpus = self._gpus, {}  # to be freed once, whoever else closes
        for gpu in gpus.values():
            gpu.close()

    def stream(
        self, images: Iterable[Source], on_error: OnError, embeddings: bool, *, may_wait: bool
    ) -> Generator[Score, None, None]:
        """A Score for each image, in order; ``may_wait`` where an image may be long in coming (see ``Scorer.stream``).

        Raises the first image's error under "raise", BackendExecutionError.
        """
        manifest = self._engine.scorer
        names = manifest.score_names
        for batch, (values, vectors) in self._computed(self._batches(images, may_wait), ahead=not may_wait):
            rows = iter(range(len(values)))
            for item in batch:
                if item.error is None:
                    row = next(rows)
                    numbers, vector = tuple(values[row].tolist()), vectors[row]
                elif on_error == "raise":
                    raise item.error
                else:
                    numbers, vector = (math.nan,) * len(names), np.full(manifest.embedding_dim, np.nan, np.float32)
                name = _image_name(item.source)
                yield Score(item.index, name, names, numbers, item.error, vector if embeddings else None)

    def warmup(self) -> None:
        """Run the model once at each batch size that comes first, on black images."""
        size = self._engine.scorer.preprocess.size
        for batch in sorted({1, self.batch_size}):
            self._backend.run(np.zeros((batch, size, size, 3), np.uint8))

    def _computed(self, batches: Iterator[list[Prepared]], *, ahead: bool) -> Iterator[tuple[list[Prepared], _Results]]:
        """Each batch with what the model makes of it.

        With ``ahead`` the model begins with the next batch before one is handed out: a GPU would wait meanwhile. Where
        images may be long in coming, their answers would.
        """
        if not ahead:
            yield from ((batch, self._run(batch)) for batch in batches)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="declip-model") as model:
            begun: deque[tuple[list[Prepared], Future[_Results]]] = deque()
            for batch in batches:
                begun.append((batch, model.submit(self._run, batch)))
                if len(begun) > 1:
                    done, results = begun.popleft()
                    yield done, results.result()
            for done, results in begun:
                yield done, results.result()

    def _batches(self, images: Iterable[Source], may_wait: bool) -> Iterator[list[Prepared]]:
        """Prepared images in batches: full ones, and where ``images`` may wait whatever is there when no more is.

        Waiting for a full batch as long as images are on their way keeps the model efficient; not waiting when none is
        lets a program on the other side of a pipe send its next path only after it has read the answer, and a slow
        image does not hold back the answers to those before it.
        """
        size = self._images_at_once
        read = taken = 0

        def counted() -> Iterator[Source]:
            nonlocal read
            for image in images:
                read += 1
                yield image

        load = Loader(self._preparer(), threads=self._threads, ahead=2 * size + self._threads)
        batch: list[Prepared] = []
        with closing(load(counted(), patience=_PATIENCE if may_wait else None)) as prepared:
            for item in prepared:
                if item is None:
                    if batch:
                        yield batch
                        batch = []
                    continue
                batch.append(item)
                taken += 1
                if len(batch) == size or (may_wait and taken == read):
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _run(self, batch: list[Prepared]) -> _Results:
        """Of a batch's n pictures that could be prepared, each uint8 [views, S, S, 3]."""
        pictures = [item.pixels for item in batch if item.pixels is not None]
        manifest, views = self._engine.scorer, self._options.views
        if not pictures:
            return np.empty((0, len(manifest.scores)), np.float32), np.empty((0, manifest.embedding_dim), np.float32)
        pixels, size = np.concatenate(pictures), self.batch_size
        outputs = [self._backend.run(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        scores = np.concatenate([output.scores for output in outputs])
        if not np.isfinite(scores).all():  # NaN is how a failed image is told from the others
            raise BackendExecutionError(
                f"{self._backend.description} gave a score that is not a number. Use precision='fp32'."
            )
        raw = scores.reshape(len(pictures), views, -1).mean(axis=1)
        perceptual = np.concatenate([output.perceptual for output in outputs])
        vectors = perceptual.reshape(len(pictures), views, -1).mean(axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return calibrate(manifest.scores, raw), vectors

    def _preparer(self) -> Callable[[Source], npt.NDArray[np.uint8]]:
        options, spec = self._options, self._engine.scorer.preprocess
        fast = options.decode == "fast" and options.views == 1  # native-resolution crops need every pixel
        minimum_side = 2 * spec.size if fast else None

        def prepared(source: Any) -> npt.NDArray[np.uint8]:
            try:
                with self._decoding:
                    picture = exchange(source) if is_tensor(source) else source
                    if isinstance(picture, DeviceTensor):
                        return self._of_tensor(picture)
                    decoded = self._decoded_on_gpu(picture)
                    if decoded is not None:
                        return decoded
                    image = open_image(
                        picture, minimum_side=minimum_side, max_pixels=options.max_pixels, channels=options.channels
                    )
                    return prepare(image, spec, options.views)
            except MemoryError as error:  # where Pillow or NumPy ran out of it while resizing
                raise ImageTooLargeError(f"{describe(source)} needs too much memory. Scale it down first.") from error

        return prepared

    def _of_tensor(self, tensor: DeviceTensor) -> npt.NDArray[np.uint8]:
        """The views of a picture that lies on a GPU."""
        require_device_picture(tensor)
        check_size((tensor.shape[1], tensor.shape[0]), describe(tensor), self._options.max_pixels)
        try:
            return self._gpu(tensor.device).of_tensor(tensor, self._options.channels)
        except DeviceMemoryError as error:
            raise ImageTooLargeError(
                f"{describe(tensor)} needs more memory than its GPU has left. Scale it down first, or free some."
            ) from error

    def _decoded_on_gpu(self, source: Source) -> npt.NDArray[np.uint8] | None:
        """The views of a picture where it shall be decoded on a GPU, and is."""
        if self._options.decode != "gpu":
            return None
        jpeg = read_jpeg(source, self._options.max_pixels)
        if jpeg is None:
            return None
        try:
            return self._gpu(self._decodes_on).of_jpeg(jpeg)
        except DeviceMemoryError:
            warnings.warn(  # in the same words each time, so that it is shown once
                "the GPU has too little memory left for some of the photos: they are decoded on the CPU. Free some for"
                " full speed.",
                BackendWarning,
                stacklevel=2,
            )
            return None

    def _gpu(self, index: int) -> GpuPictures:
        """What prepares pictures on GPU ``index``."""
        with self._opening:
            if self._closed:
                raise ScorerStateError("this scorer is closed. Make a new Scorer.")
            if index not in self._gpus:
                options = self._options
                decodes = options.decode == "gpu" and index == self._decodes_on
                self._gpus[index] = GpuPictures(index, self._engine.scorer.preprocess, options.views, decodes=decodes)
            return self._gpus[index]

    @property
    def _decodes_on(self) -> int:
        """The GPU that decodes: the model's own, and the first where that runs on the CPU."""
        _, _, index = self._backend.device.partition(":")
        return int(index or 0)

    @property
    def _images_at_once(self) -> int:
        return max(1, self.batch_size // self._options.views)


def _image_name(source: Source) -> str:
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else describe(source)
