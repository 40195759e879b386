"""One guided step of Stable Diffusion 1.5's UNet, and four-step pictures: ours against diffusers in torch.

    python benchmarks/generation.py [--engine dp.engine --base FOLDER --adapter FILE] [--rounds 5]

Without --engine random weights are written and exported first (2 GB each, and some minutes). Every peer has a process
of its own, whose memory is stated. Each of ours is loaded together with those in torch and takes turns with them, so
that all suffer alike from whatever slows the machine down (some 16 GB; --peer chooses some). A step is 512 x 512
pixels, guidance, one reference image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import Bar, Others, engine_column, save, times_as_fast

from declip_runtime.benchmark import Row, Timing
from declip_runtime.engine_file import EngineFile

OURS = {
    "ours, openvino bf16": ("openvino", "cpu", "bf16"),
    "ours, openvino fp32": ("openvino", "cpu", "fp32"),
    "ours, onnxruntime fp32": ("onnxruntime", "cpu", "fp32"),
    "ours, onnxruntime fp16, CUDA": ("onnxruntime", "cuda", "fp16"),
}
TORCH = {
    "torch fp32 eager": ("cpu", "float32"),
    "torch bf16 eager": ("cpu", "bfloat16"),
    "torch fp16 eager, CUDA": ("cuda", "float16"),
    "torch fp16 compiled, CUDA": ("cuda", "float16"),
}
PEERS = (*TORCH, *OURS)
REFERENCES = ("torch fp32 eager", "torch bf16 eager", "torch fp16 eager, CUDA")
BEST, AIM = "ours, openvino bf16", 1.4
STEPS = 4
GIGABYTE = 1e9


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--base", type=Path, help="what the engine was made of, for diffusers")
    parser.add_argument("--adapter", type=Path, help="likewise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="append", metavar="NAME", help=f"default: {', '.join(PEERS)}")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options)
        return
    if options.engine is not None and (options.base is None or options.adapter is None):
        parser.error("--engine needs --base and --adapter, which diffusers is measured with")
    with tempfile.TemporaryDirectory() as folder:
        if options.engine is None:
            options.engine, options.base, options.adapter = _make(Path(folder))
        rows, bars = _measure(options)
    save("generation", "Generation: one guided step of SD 1.5's UNet, and pictures of four steps", rows, bars)


def _measure(options: argparse.Namespace) -> tuple[list[Row], list[Bar]]:
    others, engine = Others(), EngineFile.open(options.engine)
    names = options.peer or [name for name in PEERS if "CUDA" not in name or _cuda()]
    drawn = [name for name in names if name in (BEST, "torch bf16 eager") or "CUDA" in name]
    rows: list[Row] = []
    bars: list[Bar] = []
    for what, asked, chosen, rounds in (
        ("guided step", "step", names, options.rounds),
        (f"picture of {STEPS} steps, no guidance", "picture", drawn, min(options.rounds, 3)),
    ):
        torch, ours = [n for n in chosen if n in TORCH], [n for n in chosen if n in OURS]
        for group in ([*torch, one] for one in ours) if ours else [torch]:
            timings, memory = _take_turns(group, asked, rounds, options)
            for name in group if group[-1] in ours[:1] or not ours else group[-1:]:
                row: Row = {"what": what, **engine_column(engine if name in OURS else None), "peer": name}
                median = float(np.median(timings[name].seconds))
                row |= {"seconds": round(median, 3), "best": round(min(timings[name].seconds), 3)}
                for other in REFERENCES:
                    known = other in timings
                    row[f"x {other}"] = round(times_as_fast(timings[name], timings[other]), 2) if known else ""
                row |= {key: round(value / GIGABYTE, 2) for key, value in memory[name].items()}
                rows.append({**row, "engine GB": round(engine.path.stat().st_size / GIGABYTE, 2), **others.column()})
            if {BEST, "torch bf16 eager"} <= timings.keys():
                ratio = times_as_fast(timings[BEST], timings["torch bf16 eager"])
                bars.append(Bar(f"{what}: {BEST} / torch bf16 eager", AIM, ratio))
    return rows, bars


def _take_turns(
    names: Sequence[str], what: str, rounds: int, options: argparse.Namespace
) -> tuple[dict[str, Timing], dict[str, dict[str, float]]]:
    """Seconds of each peer in each round (the first call of each does not count), and its memory."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        peers = {name: stack.enter_context(_started(name, options)) for name in names}
        for peer in peers.values():
            peer.ask(what)
        for _ in range(rounds):
            for name, peer in peers.items():
                seconds[name].append(peer.ask(what))
            print(what, {name: round(found[-1], 2) for name, found in seconds.items()}, flush=True)
        memory = {name: peer.memory() for name, peer in peers.items()}
    return {name: Timing(tuple(found)) for name, found in seconds.items()}, memory


class _Peer:
    """A process that does one thing when it is asked, and says how long that took."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str) -> float:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the peer has no pipes")
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer has ended with {self._process.wait()}")
        return float(answer)

    def memory(self) -> dict[str, float]:
        """Resident bytes now, and at their peak (Linux)."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        now = psutil.Process(self._process.pid).memory_info().rss
        return {"resident GB": now, "peak GB": 1024 * int(status["VmHWM"].split()[0])}


@contextmanager
def _started(name: str, options: argparse.Namespace) -> Iterator[_Peer]:
    places = ["--engine", str(options.engine), "--base", str(options.base), "--adapter", str(options.adapter)]
    command = [sys.executable, __file__, *places, "--child", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _Peer(process)
        finally:
            process.kill()


def _child(name: str, options: argparse.Namespace) -> None:
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print, and the pipe is for numbers
    works = _ours(*OURS[name], options.engine) if name in OURS else _torch(name, options.base, options.adapter)
    for line in sys.stdin:
        began = time.perf_counter()
        works[line.strip()]()
        out.write(f"{time.perf_counter() - began}\n")
        out.flush()


def _ours(backend: str, device: str, precision: Any, path: Path) -> dict[str, Callable[[], object]]:
    from declip_runtime import backends
    from declip_runtime.generation.adapter import DPAdapter
    from declip_runtime.plan_check import check_inputs

    engine = EngineFile.open(path)

    @cache
    def unet() -> Callable[[], object]:
        backend_ = backends.choose(engine, backend, component="unet", device=device, precision=precision)
        sizes = {"batch": 2, "height": 64, "width": 64, "conditions": 1, "tokens": 4}
        random = np.random.default_rng(0)
        specs = backend_.signature.inputs
        inputs = {n: random.standard_normal(s.sized(sizes)).astype(np.float32) for n, s in specs.items()}
        inputs["timestep"][:] = 500
        return lambda: backend_.compute(inputs)

    @cache
    def adapter() -> DPAdapter:
        return DPAdapter(path, backend=backend, device=device, precision=precision)

    def picture() -> None:
        look = check_inputs(engine.generator.components["image_encoder"])["images"][0]
        adapter().generate("a", perceptual=look, steps=STEPS, guidance=1.0, seed=0)

    return {"step": lambda: unet()(), "picture": picture}


def _torch(name: str, base: Path, adapter: Path) -> dict[str, Callable[[], object]]:
    import torch

    from declip_export.generator.adapter import load_adapter
    from declip_export.generator.base import load_base

    loaded = load_base(base)
    load_adapter(adapter, loaded)
    device, dtype = TORCH[name][0], getattr(torch, TORCH[name][1])
    pipeline = loaded.pipeline.to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.set_ip_adapter_scale(0.7)
    if "compiled" in name:
        pipeline.unet = torch.compile(pipeline.unet)
    like = {"dtype": dtype, "device": device}
    sample, text = torch.randn(2, 4, 64, 64, **like), torch.randn(2, 77, 768, **like)
    images = [torch.randn(2, 1, 1024, **like)]
    times = torch.tensor([500, 500], device=device)

    def step() -> None:
        with torch.inference_mode():
            pipeline.unet(sample, times, text, added_cond_kwargs={"image_embeds": images})
        if device == "cuda":
            torch.cuda.synchronize()

    def picture() -> None:
        pipeline("a", ip_adapter_image_embeds=[images[0][:1]], num_inference_steps=STEPS, guidance_scale=1.0)

    return {"step": step, "picture": picture}


def _make(folder: Path) -> tuple[Path, Path, Path]:
    """An engine of random weights, and what it was made of; the tower is small, since it runs once a picture."""
    code = (
        "import sys; from pathlib import Path; from random_diffusion import write_random_sd15;"
        "write_random_sd15(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parent)
    base, adapter, engine = folder / "base", folder / "ip-adapter.bin", folder / "sd15.engine"
    command = [sys.executable, "-m", "declip_sdk", "export-generator", "--base", str(base), "--adapter", str(adapter)]
    command += ["--tower", "ViT-H-14", "--pretrained", "random", "--no-parity", "-o", str(engine)]
    command += [] if _cuda() else ["--no-fp16"]
    subprocess.run(command, check=True)
    return engine, base, adapter


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
