"""Photos from files with each way to decode them, and the pixels that a GPU makes of them beside Pillow's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acceptance import Setting
from common import Bar, interleaved, times_as_fast
from photos import make_jpegs
from PIL import Image

from declip_runtime import backends, cuda, nvimagecodec
from declip_runtime.benchmark import Row, Workload
from declip_runtime.cache import Cache
from declip_runtime.gpu_pictures import GpuPictures
from declip_runtime.images import DEFAULT_MAX_PIXELS, open_image
from declip_runtime.jpeg import read_jpeg
from declip_runtime.manifest import Preprocess
from declip_runtime.options import Decode
from declip_runtime.preprocess import prepare
from declip_runtime.scorer import Scorer
from declip_runtime.tensors import DeviceTensor, exchange

PHOTOS = 64
LEVELS = 2  # of 255: what two JPEG decoders may differ by, after resizing
SHAPES = ((3000, 4000), (4000, 3000), (1080, 1920), (401, 397), (224, 224), (90, 3000), (31, 17))


def from_files(
    folder: Path, source: Path | None, count: int, setting: Setting, cache: Cache, bars: list[Bar]
) -> Iterator[Row]:
    """Photos a second for each way to decode, in turn on one scorer each; the GPU's only where nvImageCodec is."""
    paths = make_jpegs(folder, count, source)
    ways: list[Decode] = ["fast", "exact"]
    reason = cuda.unavailable() or nvimagecodec.unavailable()
    if reason is None:
        ways.append("gpu")
    else:
        yield {"what": "decoded by the GPU", "not measured": reason}
    states = backends.available()
    backend, device = next(which for which in setting.ours if states[which[0]] is None)
    scorers = {way: Scorer(backend=backend, device=device, decode=way, cache_dir=cache.location) for way in ways}
    try:
        if cuda.unavailable() is None and torch.cuda.is_available():
            yield from resized(scorers["exact"].manifest.preprocess, bars)
        if reason is None:
            yield from compare(paths, scorers["gpu"].manifest.preprocess, bars)
        work: dict[str, Workload] = {way: partial(scorer.score, paths) for way, scorer in scorers.items()}
        for call in work.values():
            call()
        timings = interleaved(work, seconds=setting.seconds, rounds=5)
        for way, timing in timings.items():
            ratio = round(times_as_fast(timing, timings["exact"]), 2)
            yield {"what": f"decode={way}", **timing.columns(len(paths)), "x exact": ratio}
    finally:
        for scorer in scorers.values():
            scorer.close()


def resized(spec: Preprocess, bars: list[Bar]) -> Iterator[Row]:
    """Tensors that torch holds on the GPU, of several shapes and layouts, against Pillow: no level may differ.

    Several threads at once, as a scorer's; then the time of one photo of 12 megapixels, one thread each.
    """
    on_gpu = GpuPictures(0, spec, 5)
    rng = np.random.default_rng(0)
    try:
        for shape in SHAPES:
            pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
            here = torch.from_numpy(pixels).cuda()
            layouts = {
                "rows": here,
                "planes": here.permute(2, 0, 1).contiguous().permute(1, 2, 0),
                "turned": here.transpose(0, 1).contiguous().transpose(0, 1),
                "mirrored half": torch.cat([here, here], 1)[:, shape[1] :],
            }
            torch.cuda.synchronize()
            wanted = prepare(Image.fromarray(pixels), spec, 5)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(partial(_on_gpu, on_gpu), layouts.values()))
            for layout, views in zip(layouts, found, strict=True):
                worst = int(np.abs(views.astype(int) - wanted).max())
                yield {"what": f"tensor {shape[0]} x {shape[1]}, {layout}", "largest difference": worst}
                bars.append(Bar(f"tensor {shape[0]} x {shape[1]}, {layout}: levels", 0, worst, at_most=True))
        pixels = rng.integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
        held, photo = torch.from_numpy(pixels).cuda(), Image.fromarray(pixels)
        work: dict[str, Workload] = {
            "12 MP, resized by the GPU": partial(_on_gpu, on_gpu, held),
            "12 MP, resized by Pillow": partial(prepare, photo, spec, 5),
        }
        timings = interleaved(work, seconds=2.0, rounds=5)
        slow = timings["12 MP, resized by Pillow"]
        for what, timing in timings.items():
            yield {"what": what, **timing.columns(1), "x Pillow": round(times_as_fast(timing, slow), 1)}
    finally:
        on_gpu.close()


def _on_gpu(pictures: GpuPictures, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    exchanged = exchange(tensor)
    if not isinstance(exchanged, DeviceTensor):
        raise TypeError(f"a tensor on {tensor.device} is not on a GPU")
    return pictures.of_tensor(exchanged, "rgb")


def compare(paths: list[str], spec: Preprocess, bars: list[Bar]) -> Iterator[Row]:
    """How far the tower's input is from what the CPU makes of the same files."""
    on_gpu = GpuPictures(0, spec, 5, decodes=True)
    try:
        for path in paths[:8]:
            jpeg = read_jpeg(path, DEFAULT_MAX_PIXELS)
            found = None if jpeg is None else on_gpu.of_jpeg(jpeg)
            if found is None:
                bars.append(Bar(f"{path}: decoded by the GPU", 1, 0))
                continue
            difference = np.abs(found.astype(int) - prepare(open_image(path), spec, 5))
            yield {"what": Path(path).name, "largest difference": int(difference.max()), "mean": difference.mean()}
            bars.append(Bar(f"{Path(path).name}: levels", LEVELS, float(difference[0].max()), at_most=True))
    finally:
        on_gpu.close()
