"""How fast the model alone is, in one run against everything that a user might run instead.

    python benchmarks/model_only.py [--seconds 3] [--batch 1 --batch 64] [--model ViT-B-32]

Torch and the plain exports get normalised float32 images, ours gets uint8 pixels and normalises them itself. The GEMM
ceiling is the time of all matrix products with weights in the network as open_clip wrote it, in bf16, nothing between.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import peers
import torch
from common import Bar, Others, engine_column, interleaved, save, times_as_fast

from declip_runtime.backends.base import Backend
from declip_runtime.benchmark import Row, model_workload
from declip_runtime.cpu import available_cpus

VIT = "ViT-B-32"
TORCH, TORCH_BF16 = "torch fp32 eager", "torch bf16 eager"
PLAIN_ORT, PLAIN_OV = "plain export, ONNX Runtime", "plain export, OpenVINO"
CEILING, OURS = "GEMM ceiling, bf16", "ours, openvino"
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"default: {VIT} and {peers.NANO}")
    parser.add_argument("--batch", type=int, action="append", help=f"default: {BATCHES}")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each peer and batch size")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each peer; a ratio is the median of theirs")
    options = parser.parse_args()
    torch.set_num_threads(available_cpus())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or (VIT, peers.NANO):
            model = peers.load_model(name, Path(folder), int8=True)
            backends = peers.our_backends(model)
            plain = peers.plain_export(model, Path(folder) / f"{name}.onnx")
            exports = {PLAIN_ORT: peers.plain_onnxruntime(plain), PLAIN_OV: peers.plain_openvino(plain)}
            for batch in options.batch or BATCHES:
                rows += measure(model, backends, exports, batch, options.seconds, options.rounds)
    save("model_only", "Model only: images a second", rows, bars(rows))


def measure(
    model: peers.Model, backends: list[Backend], exports: dict[str, peers.Peer], batch: int, seconds: float, rounds: int
) -> list[Row]:
    """All peers at one batch size."""
    size = model.preprocess.size
    images = peers.normalized(
        np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8), model.preprocess
    )
    work = {
        TORCH: peers.torch_peer(model, images),
        TORCH_BF16: peers.torch_peer(model, images, torch.bfloat16),
        **{name: export(images) for name, export in exports.items()},
        CEILING: peers.gemm_ceiling(model, images),  # beside ours: some machines swing within seconds
        **{f"ours, {b.name} {b.precision}": model_workload(b, size, batch) for b in backends},
    }
    others = Others()
    timings = interleaved(work, seconds=seconds, rounds=rounds)
    rows: list[Row] = [
        {
            "model": model.name,
            **engine_column(model.engine if name.startswith("ours") else None),
            "batch": batch,
            "peer": name,
            **timing.columns(batch),
        }
        for name, timing in timings.items()
    ]
    for row, timing in zip(rows, timings.values(), strict=True):
        row |= {f"x {name}": round(times_as_fast(timing, timings[name]), 3) for name in (TORCH, PLAIN_OV, CEILING)}
        row |= others.column()
    print(f"{model.name}, batch {batch}: ", {row["peer"]: row["images/s"] for row in rows}, flush=True)
    return rows


def bars(rows: list[Row]) -> list[Bar]:
    """The promises. A ratio is the one at the batch size that suits the other side best."""

    def rates(model: str, name: str) -> dict[int, float]:
        return {int(r["batch"]): float(r["images/s"]) for r in rows if (r["model"], r["peer"]) == (model, name)}

    def ratio(name: str) -> float:
        other = rates(VIT, name)
        batch = max(other, key=other.__getitem__, default=None)
        ours = (r for r in rows if (r["model"], r["peer"], r["batch"]) == (VIT, f"{OURS} bf16", batch))
        return float(next(ours, {}).get(f"x {name}", "nan"))

    nano = [
        rate for precision in ("bf16", "fp32", "int8") for rate in rates(peers.NANO, f"{OURS} {precision}").values()
    ]
    return [
        Bar(f"{VIT}, ours in bf16 / torch fp32 eager", 5, ratio(TORCH)),
        Bar(f"{VIT}, ours in bf16 / plain export on OpenVINO", 1.2, ratio(PLAIN_OV)),
        Bar(f"{VIT}, ours in bf16 / GEMM ceiling", 0.6, ratio(CEILING)),
        Bar(f"{peers.NANO}, images/s", 300, max(nano, default=float("nan"))),
    ]


if __name__ == "__main__":
    main()
