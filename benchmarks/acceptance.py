"""What ``gpu_acceptance.py`` looks at in one model: parity, start, throughput, latency, memory."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import peers
import psutil
import torch
from common import Bar, interleaved, times_as_fast

from declip_export.graph import EngineGraph
from declip_export.parity import LIMITS, orders
from declip_runtime import backends, cuda
from declip_runtime.backends.base import Backend, Output
from declip_runtime.benchmark import Row, Workload
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile

LATENCY_BATCHES = (1, 8)
SCORES_WITHIN, COSINE_ABOVE = LIMITS["half"]
MEBIBYTE = 1 << 20
EAGER, COMPILED, CEILING = "torch fp16 eager", "torch fp16 compiled", "matrix products alone"


@dataclass(frozen=True)
class Setting:
    """What is run where: ``ours`` are (backend, device) pairs, ``device`` is torch's."""

    ours: tuple[tuple[str, str | None], ...]
    device: str
    dtype: torch.dtype
    batches: tuple[int, ...]
    calls: int
    seconds: float
    soak: int


@contextmanager
def recorded(model: str, what: str, sections: dict[str, list[Row]], bars: list[Bar]) -> Iterator[None]:
    """Turn an error into a row and a missed bar, so that what was measured before and comes after is not lost."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a vendor's library or torch raises; it is reported
        traceback.print_exc()
        sections["errors"].append({"model": model, "what": what, "error": " ".join(f"{error!r}".split())[:500]})
        bars.append(Bar(f"{model}, {what}: runs without an error", 1, 0))


def started(
    model: peers.Model, which: tuple[str, str | None], setting: Setting, cache: Cache, sections: dict[str, list[Row]]
) -> Backend:
    """Start twice: the first time TensorRT builds its plan, the second time it comes from ``cache``.

    The cache holds TensorRT's timing cache too, so that of several models only the first build begins with nothing.
    """
    seconds, known = [], {entry.name for entry in cache.list()}
    for _ in range(2):
        before, start = _used(setting), time.perf_counter()
        backend = backends.choose(model.engine, which[0], device=which[1], cache=cache)
        seconds.append(time.perf_counter() - start)
        row: Row = {"model": model.name, "what": backend.description, "opened, MiB": round(_used(setting) - before, 1)}
        if len(seconds) == 1:
            backend.close()
    kept = sum(e.size for e in cache.list() if e.name not in known and not e.name.startswith("timings-"))
    sections["starting"].append(
        {**row, "first, s": round(seconds[0], 1), "again, s": round(seconds[1], 1), "kept, MB": round(kept / 1e6, 1)}
    )
    return backend


def examine(
    name: str,
    backend: Backend,
    pixels: np.ndarray[Any, Any],
    reference: Output,
    setting: Setting,
    sections: dict[str, list[Row]],
) -> Iterator[Bar]:
    """Parity, latency and the soak of one backend."""
    row, bars = parity(name, backend, pixels, reference)
    sections["parity"].append(row)
    yield from bars
    sections["latency"] += latency(name, backend.description, partial(_call, backend), backend.engine, setting)
    memory: Row = {"model": name, "what": backend.description, **soaked(backend, setting)}
    sections["memory"].append(memory)
    yield Bar(f"{name}, {backend.description}: MiB that the soak adds", 8, float(memory["grew, MiB"]), at_most=True)


def parity(name: str, backend: Backend, pixels: np.ndarray[Any, Any], wanted: Output) -> tuple[Row, list[Bar]]:
    """How far scores and embeddings are from the reference, and whether the photos keep their order.

    That is asked of pairs that the reference holds apart by more than a score may change; nearer ones are ties.
    """
    found = backend.run(pixels)
    difference = np.abs(found.scores - wanted.scores)
    cosine = (found.perceptual * wanted.perceptual).sum(1)
    pairs, swapped, clear = orders(found.scores, wanted.scores)
    row: Row = {
        "model": name,
        "what": backend.description,
        "photos": len(pixels),
        "max score difference": f"{difference.max():.1e}",
        "mean": f"{difference.mean():.1e}",
        "min cosine": f"{cosine.min():.6f}",
        "pairs swapped": f"{swapped} of {pairs}",
        "clear ones": clear,
    }
    return row, [
        Bar(f"{name}, {backend.description}: scores within", SCORES_WITHIN, float(difference.max()), at_most=True),
        Bar(f"{name}, {backend.description}: cosine above", COSINE_ABOVE, float(cosine.min())),
        Bar(f"{name}, {backend.description}: clear pairs of photos swapped", 0, clear, at_most=True),
    ]


def throughput(
    model: peers.Model,
    opened: list[Backend],
    setting: Setting,
    sections: dict[str, list[Row]],
    bars: list[Bar],
    save: Callable[[], None],
) -> Iterator[Row]:
    """Images a second of all contenders in turn, at each batch size; and the share of the matrix units' own speed.

    One that fails at a batch is left out there and after: what has run out of memory would again. Ours cut a batch into
    pieces of what their plans take (64).
    """
    size = model.preprocess.size
    eager = compiled = None
    if setting.device == "cpu" or torch.cuda.is_available():
        with recorded(model.name, "torch", sections, bars):
            eager, compiled = _torch_contenders(model, setting)
            for what, make in ((EAGER, eager), (COMPILED, compiled)):
                sections["latency"] += latency(model.name, what, make, model.engine, setting)
    failed: set[str] = set()
    for batch in setting.batches:
        save()
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        floats = peers.normalized(images, model.preprocess)
        makers: dict[str, Callable[[], Workload]] = {b.description: partial(_call, b, images) for b in opened}
        if eager is not None and compiled is not None:
            makers |= {EAGER: partial(eager, images), COMPILED: partial(compiled, images)}
            makers[CEILING] = partial(peers.gemm_ceiling, model, floats, setting.dtype, setting.device)
        work: dict[str, Workload] = {}
        for who, make in makers.items():
            if who not in failed:
                failed.add(who)
                with recorded(model.name, f"{who}, batch {batch}", sections, bars):
                    work[who] = make()
                    work[who]()
                    failed.remove(who)
        work = {who: call for who, call in work.items() if who not in failed}
        timings = interleaved(work, seconds=setting.seconds, rounds=5)
        for who, timing in timings.items():
            others = [other for other in (EAGER, COMPILED, CEILING) if other in timings]
            ratios = {f"x {other}": round(times_as_fast(timing, timings[other]), 2) for other in others}
            yield {"model": model.name, "batch": batch, "what": who, **timing.columns(batch), **ratios}
        print(batch, {who: timing.columns(batch)["images/s"] for who, timing in timings.items()}, flush=True)


def latency(
    name: str, what: str, make: Callable[[np.ndarray[Any, Any]], Workload], engine: EngineFile, setting: Setting
) -> Iterator[Row]:
    """Milliseconds of a call, pixels in to scores out: half of the calls take at most p50, 99 of 100 at most p99.

    ``make`` turns images into the call.
    """
    size = engine.scorer.preprocess.size
    for batch in LATENCY_BATCHES:
        run = make(np.zeros((batch, size, size, 3), np.uint8))
        run()
        times = []
        for _ in range(setting.calls):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        low, high = np.quantile(times, (0.5, 0.99)) * 1000
        yield {
            "model": name,
            "what": what,
            "batch": batch,
            "p50 ms": f"{low:.2f}",
            "p99 ms": f"{high:.2f}",
        }


def soaked(backend: Backend, setting: Setting) -> Row:
    """Many batches of changing sizes: memory of GPU and process must not grow after the first tenth."""
    size = backend.engine.scorer.preprocess.size
    largest = max(2, backend.preferred_batch)
    images = np.random.default_rng(0).integers(0, 256, (largest, size, size, 3), np.uint8)
    rng, start, warm = np.random.default_rng(1), 0.0, (0.0, 0.0)
    for number in range(setting.soak):
        if number == setting.soak // 10:
            warm, start = (_used(setting), _resident()), time.perf_counter()
        backend.run(images[: rng.integers(1, largest + 1)])
    grown = (_used(setting) - warm[0]) + (_resident() - warm[1])
    whole = _call(backend, images)
    half = _call(backend, images[: largest // 2])
    timings = interleaved({"whole": whole, "half": half}, seconds=setting.seconds, rounds=5)
    return {
        "batches": setting.soak,
        "seconds": round(time.perf_counter() - start),
        "grew, MiB": round(grown, 1),
        # A batch of two lanes against two of one lane each: what overlapping copies with computing is worth.
        "two lanes / one": round(2 * times_as_fast(timings["whole"], timings["half"]), 2),
    }


def reference(model: peers.Model, pixels: np.ndarray[Any, Any], device: str) -> Output:
    """What the model gives for the pixels in FP32: by torch; of the bundled engine by its FP32 graph on the CPU."""
    if model.name == peers.NANO:
        with closing(backends.choose(model.engine, device="cpu", precision="fp32")) as backend:
            return backend.run(pixels)
    device = device if torch.cuda.is_available() else "cpu"
    graph = EngineGraph(model.declip, model.preprocess).round_weights().to(device)
    with torch.inference_mode():
        parts = [graph(torch.from_numpy(part).to(device)) for part in np.array_split(pixels, max(1, len(pixels) // 8))]
    return Output(*(torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True)))


def _torch_contenders(model: peers.Model, setting: Setting) -> tuple[Any, Any]:
    """open_clip's module in FP16 as a user would run it, eager and compiled: images -> a call that ends with scores."""
    declip = model.declip.to(setting.device)
    declip.visual.to(setting.dtype)
    mean, std = (
        torch.tensor(v, device=setting.device).view(1, 3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std)
    )

    def forward(images: torch.Tensor) -> torch.Tensor:
        pixels = images.to(setting.device, non_blocking=True).permute(0, 3, 1, 2) / 255
        scores: torch.Tensor = declip(((pixels - mean) / std).to(setting.dtype)).scores
        return scores

    def contender(function: Any) -> Any:
        def on(images: np.ndarray[Any, Any]) -> Workload:
            host = torch.from_numpy(images)
            pinned = host.pin_memory() if setting.device != "cpu" else host

            @torch.inference_mode()
            def run() -> Any:
                return function(pinned).cpu()

            return run

        return on

    return contender(forward), contender(torch.compile(forward, dynamic=False))


def _call(backend: Backend, images: np.ndarray[Any, Any]) -> Workload:
    backend.run(images)
    return lambda: backend.run(images)


def _used(setting: Setting) -> float:
    """MiB in use on the GPU, by anybody; not a number without cuda-bindings, which tell."""
    if setting.device == "cpu":
        return 0.0
    if cuda.unavailable() is not None:
        return math.nan
    return cuda.memory_in_use() / MEBIBYTE


def _resident() -> float:
    return float(psutil.Process().memory_info().rss) / MEBIBYTE
