"""Photos from files with each way to decode them, and the pixels that a GPU makes of them beside Pillow's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from acceptance import Setting
from common import Bar, interleaved, times_as_fast
from photos import make_jpegs

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

PHOTOS = 64
LEVELS = 2  # of 255: what two JPEG decoders may differ by, after resizing


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
