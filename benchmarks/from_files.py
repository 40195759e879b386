"""From JPEG files of 12 to 24 megapixels to scores, against the loop that one writes first and against decoding alone.

    python benchmarks/from_files.py [--photos FOLDER] [--files 24] [--rounds 3]

The naive loop decodes with Pillow, transforms with open_clip and runs torch in FP32, one file at a time. Decoding alone
uses as many threads as ours, with the same scaled decoding ("fast") or without ("exact"), and does nothing with the
pixels. Files lie in the page cache. Every photo is scored several times in a pass, so that the pipeline is full.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import peers
import torch
from common import Bar, Others, engine_column, interleaved, save, times_as_fast
from photos import make_jpegs
from PIL import Image

from declip_runtime.benchmark import Row, Timing, Workload
from declip_runtime.cpu import available_cpus
from declip_runtime.scorer import Scorer

VIT = "ViT-B-32"
NAIVE, DECODING, OURS = "naive loop", "decoding alone, fast", "ours, fast"
REPEATS = 4


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to enlarge; default: scikit-image's samples")
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3, help="passes of each peer over the files")
    parser.add_argument("--model", action="append", help=f"default: {peers.NANO} and {VIT}")
    options = parser.parse_args()
    torch.set_num_threads(available_cpus())
    rows: list[Row] = []
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_jpegs(Path(folder), options.files, options.photos)
        print(len(files), "files,", describe(files), flush=True)
        for name in options.model or (peers.NANO, VIT):
            model = peers.load_model(name, Path(folder))
            measured = measure(model, files, options.rounds)
            drift = drift_of(model, files)
            rows += [{**row, "files": describe(files), **drift} for row in measured]
            bars += bars_of(name, measured, drift)
    save("from_files", "From files of 12 to 24 megapixels: images a second", rows, bars)


def measure(model: peers.Model, files: list[str], rounds: int) -> list[Row]:
    """All peers with one model."""
    size, many = model.preprocess.size, files * REPEATS
    with Scorer(model.engine.path) as fast, Scorer(model.engine.path, decode="exact") as exact:
        work: dict[str, tuple[list[str], Workload]] = {
            NAIVE: (files, lambda: naive(model, files)),
            DECODING: (many, lambda: decode_all(many, 2 * size)),
            "decoding alone, exact": (many, lambda: decode_all(many, None)),
            OURS: (many, lambda: fast.score(many)),
            "ours, exact": (many, lambda: exact.score(many)),
        }
        print(model.name, fast, "batch", fast.batch_size, flush=True)
        fast.warmup()
        exact.warmup()
        naive(model, files[:1])
        runs = {name: run for name, (_, run) in work.items()}
        others = Others()
        timings = interleaved(runs, seconds=0, rounds=rounds, lead_in=False)
        share = others.column()
    rows: list[Row] = []
    for row in compare(timings, {name: len(given) for name, (given, _) in work.items()}):
        engine = model.engine if str(row["peer"]).startswith("ours") else None
        rows.append({"model": model.name, **engine_column(engine), **row, **share})
        print(rows[-1], flush=True)
    return rows


def compare(timings: Mapping[str, Timing], images: Mapping[str, int]) -> list[Row]:
    """A row for each peer: its speed, and how many times as fast it is as two others, within each round.

    ``images`` is how many each peer takes in a call.
    """
    each = {name: Timing(tuple(s / images[name] for s in timing.seconds)) for name, timing in timings.items()}
    return [
        {
            "peer": name,
            **timing.columns(images[name]),
            **{f"x {other}": round(times_as_fast(each[name], each[other]), 3) for other in (NAIVE, DECODING)},
        }
        for name, timing in timings.items()
    ]


def naive(model: peers.Model, files: list[str]) -> None:
    """What one writes first."""
    spec = model.preprocess
    import open_clip  # loading the model has made it importable beside a CPU build of torch

    transform = open_clip.image_transform(spec.size, is_train=False, mean=spec.mean, std=spec.std)
    for file in files:
        pixels = transform(Image.open(file).convert("RGB"))
        with torch.inference_mode():
            model.declip(pixels[None]).scores.numpy()


def decode_all(files: list[str], minimum_side: int | None) -> None:
    """Decode with as many threads as ours, and drop the pixels."""

    def decode(file: str) -> None:
        with Image.open(file) as image:
            if minimum_side is not None:
                image.draft("RGB", (minimum_side, minimum_side))
            image.load()

    with ThreadPoolExecutor(available_cpus()) as pool:
        list(pool.map(decode, files))


def drift_of(model: peers.Model, files: list[str]) -> Row:
    """Mean and largest difference of calibrated scores between fast and exact decoding, over files and scores."""
    with Scorer(model.engine.path) as fast, Scorer(model.engine.path, decode="exact") as exact:
        a, b = fast.score(files), exact.score(files)
    difference = np.abs([a[name] - b[name] for name in a.names])
    return {"mean drift": round(float(difference.mean()), 5), "max drift": round(float(difference.max()), 5)}


def bars_of(name: str, rows: list[Row], drift: Row) -> list[Bar]:
    """The promises."""
    ours = next(row for row in rows if row["peer"] == OURS)
    return [
        Bar(f"{name}, ours fast / naive loop", 4, float(ours[f"x {NAIVE}"])),
        Bar(f"{name}, ours fast / the same decoding alone", 0.85, float(ours[f"x {DECODING}"])),
        Bar(f"{name}, mean score drift of fast decoding", 0.01, float(drift["mean drift"]), at_most=True),
    ]


def describe(files: list[str]) -> str:
    """Megapixels, megabytes and bits a pixel, on average."""
    pixels = sum(Image.open(file).width * Image.open(file).height for file in files)
    size = sum(Path(file).stat().st_size for file in files)
    each = len(files) * 1e6
    return f"{pixels / each:.1f} MP, {size / each:.1f} MB, {8 * size / pixels:.1f} bit/pixel"


if __name__ == "__main__":
    main()
