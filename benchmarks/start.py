"""How long a start takes: medians over fresh processes, the interpreter's own start included and stated.

    python benchmarks/start.py [--runs 15]

The first Scorer() has compiled the engine before the runs that count, so the cache of compiled models is warm.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Bar, Others, engine_column, save

from declip_runtime.benchmark import Row
from declip_runtime.engine_file import EngineFile, bundled_engine

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "coffee.jpg"
VENDORS = ("numpy", "PIL", "openvino", "onnxruntime", "onnx", "torch", "torchvision", "open_clip", "timm")
SCORE = "from declip_sdk import Scorer; Scorer(cache_dir={cache!r}, backend={backend!r}).score({photo!r}).quality[0]"
IMPORTS = f"import sys, declip_sdk; print([m for m in {VENDORS} if m in sys.modules])"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    others = Others()
    with tempfile.TemporaryDirectory() as cache:

        def first_score(backend: str) -> list[str]:
            return ["-c", SCORE.format(cache=cache, backend=backend, photo=str(PHOTO))]

        cases = {
            "python alone": ["-c", "pass"],
            "import declip_sdk": ["-c", "import declip_sdk"],
            "declip --help": ["-m", "declip_sdk", "--help"],
            "Scorer() and first score, openvino": first_score("openvino"),
            "Scorer() and first score, onnxruntime": first_score("onnxruntime"),
        }
        cold = seconds(first_score("openvino"))
        times: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(runs + 1):  # the first round fills the page cache and does not count
            for case, arguments in cases.items():
                times[case].append(seconds(arguments))
    rows: list[Row] = [
        {"what": case, "seconds": round(statistics.median(t[1:]), 3), "best": round(min(t[1:]), 3), "runs": runs}
        for case, t in times.items()
    ]
    rows.append({"what": "Scorer() and first score, openvino, empty cache", "seconds": round(cold, 3), "runs": 1})
    engine = EngineFile.open(bundled_engine())
    for row in rows:
        row |= engine_column(engine if str(row["what"]).startswith("Scorer()") else None)
    loaded = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout.strip()
    median = {str(row["what"]): float(row["seconds"]) for row in rows}
    bars = [
        Bar("import declip_sdk, seconds", 0.2, median["import declip_sdk"], at_most=True),
        Bar(f"vendor libraries in sys.modules after it: {loaded}", 0, len(loaded) - 2, at_most=True),
        Bar("declip --help, seconds", 0.3, median["declip --help"], at_most=True),
        Bar("Scorer() and first score, seconds", 1, median["Scorer() and first score, openvino"], at_most=True),
    ]
    save("start", "Start: seconds from nothing to a result", [{**row, **others.column()} for row in rows], bars)


def seconds(arguments: list[str]) -> float:
    """Wall time of one Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
