"""Does streaming hold a flat resident size? 20,000 images, most of ordinary size, one in fifty of 12 to 24 megapixels.

python benchmarks/memory.py [--images 20000]
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
from common import Bar, Others, engine_column, save
from photos import make_jpegs, originals

from declip_runtime.benchmark import Row
from declip_runtime.scorer import Scorer

LARGE, ORDINARY = 3, 147
MEBIBYTE = 1 << 20


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--engine", help="default: the bundled one")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    others = Others()
    every = max(1, options.images // 40)
    process = psutil.Process()
    resident: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Scorer(options.engine, backend=options.backend) as scorer:
        files = make_files(Path(folder))
        for number, score in enumerate(scorer.stream(islice(cycle(files), options.images)), 1):
            if score.error is not None:
                raise score.error
            if number % every == 0:
                resident.append(process.memory_info().rss / MEBIBYTE)
                print(f"{number:6} {resident[-1]:8.1f} MiB", flush=True)
        made = {**engine_column(scorer.engine), "backend": f"{scorer.backend} {scorer.precision}"}
    half = len(resident) // 2
    slope = float(np.polyfit(np.arange(half, len(resident)) * every, resident[half:], 1)[0])
    growth = float(np.median(resident[-half // 2 :]) - np.median(resident[half : half + half // 2]))
    rows: list[Row] = [{"images": (i + 1) * every, "resident MiB": round(r, 1), **made} for i, r in enumerate(resident)]
    bars = [
        Bar("slope over the second half, bytes an image", 200, slope * MEBIBYTE, at_most=True),
        Bar("growth from the third to the last quarter, MiB", 2, growth, at_most=True),
    ]
    save(
        "memory",
        f"Resident size while {options.images:,} images are streamed",
        [{**row, **others.column()} for row in rows],
        bars,
    )


def make_files(folder: Path) -> list[str]:
    """Photos of many sizes and shapes (what fragments a heap), and a few large ones."""
    rng = np.random.default_rng(0)
    photos = originals(None)
    paths = make_jpegs(folder, LARGE, None)
    for number in range(ORDINARY):
        width, height = (int(v) for v in rng.integers(200, 1100, 2))
        path = folder / f"ordinary-{number}.jpg"
        photos[number % len(photos)].resize((width, height)).save(path, quality=85)
        paths.append(str(path))
    return list(np.array(paths)[rng.permutation(len(paths))])


if __name__ == "__main__":
    main()
