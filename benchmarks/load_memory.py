"""How much memory loading a large engine takes at its peak, in a fresh process for each backend and precision.

    python benchmarks/load_memory.py [--tower ViT-H-14] [--engine FILE]

Without --engine one with random weights is exported first (ViT-H-14: 1.3 GB, and 15 GB of memory for the export). The
peak of the process is stated whole (VmHWM), and split, by sampling, into its own memory and mapped file pages,
which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import Bar, Others, engine_column, save

from declip_runtime.benchmark import Row
from declip_runtime.engine_file import EngineFile

CASES = (("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32"))
GIGABYTE = 1e9


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", default="ViT-H-14")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("BACKEND", "PRECISION", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(load(options.engine, *options.child)))
        return
    others = Others()
    with tempfile.TemporaryDirectory() as folder:
        engine = options.engine or export(options.tower, Path(folder))
        parameters = 4 * EngineFile.open(engine).manifest.entries["weights.bin"].size // 2  # stored in FP16
        rows: list[Row] = []
        for backend, precision in CASES:
            for cache in ("empty", "warm") if backend == "openvino" else ("none",):
                command = [sys.executable, __file__, "--engine", str(engine), "--child"]
                child = subprocess.run(
                    [*command, backend, precision, f"{folder}/{precision}"], capture_output=True, text=True, check=True
                )
                rows.append({"backend": backend, "precision": precision, "cache": cache, **json.loads(child.stdout)})
                rows[-1]["x fp32 parameters"] = round(float(rows[-1]["peak GB"]) * GIGABYTE / parameters, 2)
                print(rows[-1], flush=True)
        file = EngineFile.open(engine)
        name, made = file.manifest.name, engine_column(file)
    bars = [
        Bar(
            f"{name}, {r['backend']} {r['precision']}, cache {r['cache']}: peak / fp32 parameters",
            2.5,
            float(r["x fp32 parameters"]),
            at_most=True,
        )
        for r in rows
    ]
    rows = [{"model": name, **made, "fp32 parameters GB": round(parameters / GIGABYTE, 2), **row} for row in rows]
    save("load_memory", "Peak memory of loading a large engine", [{**row, **others.column()} for row in rows], bars)


def export(tower: str, folder: Path) -> Path:
    """In a process of its own, so that its memory is given back."""
    program = f"import peers, pathlib; print(peers.load_model({tower!r}, pathlib.Path({str(folder)!r})).engine.path)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(result.stdout.splitlines()[-1])


def load(engine: Path, backend: str, precision: str, cache: str) -> Row:
    """Load, run one image, and say what it took. Runs in the fresh process."""
    import numpy as np

    from declip_runtime import backends
    from declip_runtime.cache import Cache

    before, samples, done = status(), [status()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            samples.append(status())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    file = EngineFile.open(engine)
    size = file.manifest.preprocess.size
    loaded = backends.choose(file, backend, precision=precision, cache=Cache(cache, limit=1 << 40))
    seconds = time.perf_counter() - start
    loaded.run(np.zeros((1, size, size, 3), np.uint8))
    done.set()
    watcher.join()
    return {
        "peak GB": round(status()["VmHWM"] / GIGABYTE, 2),
        "peak own GB": round(max(s["RssAnon"] for s in samples) / GIGABYTE, 2),
        "peak file pages GB": round(max(s["RssFile"] for s in samples) / GIGABYTE, 2),
        "before GB": round(before["VmRSS"] / GIGABYTE, 2),
        "after GB": round(status()["VmRSS"] / GIGABYTE, 2),
        "load s": round(seconds, 1),
    }


def status() -> dict[str, int]:
    """Bytes of each kind of resident memory of this process, as Linux counts them."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}


if __name__ == "__main__":
    main()
