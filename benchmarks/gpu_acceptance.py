"""One run on a machine with an NVIDIA GPU that says whether the GPU half works there, and how fast; one report.

    python benchmarks/gpu_acceptance.py [--photos FOLDER] [--model NAME ...] [--batch 64 ...] [--soak 10000] [-o FILE]

Needs one NVIDIA GPU with its driver, a checkout with ``pip install -e '.[benchmark]'``, cuda-bindings, and of the
contenders what is to take part: TensorRT with its builder (extra ``tensorrt``), ONNX Runtime with CUDA (extra ``cuda``,
in place of onnxruntime), a torch built for CUDA with a C compiler for ``torch.compile``. No weights are downloaded:
towers are random. The default models reach ViT-H-14; by estimate, since nobody has run it yet, that takes 12 GB of GPU
memory, 16 GB of RAM, 10 GB of disk for temporary files and some hours, of which the soak is most. For a first look:
``--model declip-nano --model ViT-B-32 --batch 1 --batch 64 --soak 1000``.

Takes part whatever is there: TensorRT (plans are built here), ONNX Runtime with CUDA, torch with CUDA in FP16, eager
and compiled. What fails is a row and a missed bar, and the others go on; the report, and its rows as CSV beside it, are
written after every step, in case one ends the process. Exit code 1 if a bar is missed or could not be measured.
``--rehearse`` runs the script itself on a CPU, at small sizes: it proves that the script works, nothing else.

The bundled engine is also given JPEGs of 12 to 24 megapixels, decoded by the CPU and, with nvImageCodec (extra
``nvimagecodec``), by the GPU, and the pixels that the GPU resizes are compared with Pillow's.

Parity is against torch in FP32 (TF32 off) with the same weights; of the bundled engine, whose weights torch does not
have, against its FP32 graph on the CPU. Every contender starts from uint8 pixels in host memory and ends with scores
there. Whether TensorRT fused attention is not looked at: ``trtexec --exportLayerInfo`` tells, of a plan built with
``declip build --detailed`` and taken out with ``declip unpack``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers
import torch
from acceptance import Setting, examine, recorded, reference, started, throughput
from common import PACKAGES, Bar
from gpu_pictures import PHOTOS, from_files
from photos import originals

from declip_export.photos import load_photos
from declip_runtime import backends, cuda, tensorrt_library
from declip_runtime.backends.base import Backend
from declip_runtime.benchmark import Row, to_csv, to_markdown
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import BackendError
from declip_runtime.machine import describe_machine
from declip_runtime.preprocess import prepare

BATCHES = (1, 8, 32, 64, 128, 256, 512)
LATENCY_CALLS = 1000
REHEARSED_PHOTOS = 2
SECTIONS = ("parity", "starting", "throughput", "latency", "memory", "pictures", "errors")
CACHE_LIMIT = 16 << 30  # bytes; the plans of all models together


def main() -> int:
    """Measure, print and write the report; 1 where a bar is missed, 2 where there is no GPU."""
    options = _arguments()
    setting = _rehearsal() if options.rehearse else _on_gpu(options.soak, tuple(options.batch or BATCHES))
    if setting is None:
        reason = cuda.unavailable() or "Neither TensorRT nor ONNX Runtime with CUDA can be used: see declip doctor."
        print(f"{reason} Nothing was measured; --rehearse tries the script itself.", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sections: dict[str, list[Row]] = {name: [] for name in SECTIONS}
    bars: list[Bar] = []

    def save() -> None:
        options.output.write_text(_report(sections, bars, rehearsed=options.rehearse), encoding="utf-8")
        options.output.with_suffix(".csv").write_text(_rows(sections), encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder) / "cache", CACHE_LIMIT)
        for name in options.model or ("ViT-B-32", "ViT-L-14", "ViT-H-14", peers.NANO):
            with recorded(name, "everything", sections, bars):
                accept(name, Path(folder), options.photos, setting, cache, sections, bars, save)
            if name == peers.NANO and setting.ours:
                count = REHEARSED_PHOTOS if options.rehearse else PHOTOS
                with recorded(name, "pictures from files", sections, bars):
                    sections["pictures"] += from_files(Path(folder), options.photos, count, setting, cache, bars)
            save()
    print(options.output.read_text(encoding="utf-8"))
    return int(any(not bar.met for bar in bars) and not options.rehearse)


def accept(
    name: str,
    folder: Path,
    photos: Path | None,
    setting: Setting,
    cache: Cache,
    sections: dict[str, list[Row]],
    bars: list[Bar],
    save: Callable[[], None],
) -> None:
    """Everything about one model; its rows go into ``sections``, which ``save`` keeps after every step."""
    print(f"== {name}", flush=True)
    model = peers.load_model(name, folder)
    pixels = (
        load_photos(photos, model.preprocess, 64)
        if photos is not None
        else np.concatenate([prepare(photo, model.preprocess, views=8) for photo in originals(None)])
    )
    wanted = reference(model, pixels, setting.device)
    opened: list[Backend] = []
    try:
        for which in setting.ours:
            with recorded(name, which[0], sections, bars):
                opened.append(started(model, which, setting, cache, sections))
                bars += examine(name, opened[-1], pixels, wanted, setting, sections)
            save()
        sections["throughput"] += throughput(model, opened, setting, sections, bars, save)
    finally:
        for backend in opened:
            backend.close()


def _on_gpu(soak: int, batches: tuple[int, ...]) -> Setting | None:
    """What can take part: None where nothing of ours can, and torch has no CUDA either."""
    ours: list[tuple[str, str | None]] = []
    if tensorrt_library.unavailable() is None:
        ours.append(("tensorrt", "cuda:0"))
    try:
        backends.resolve(EngineFile.open(bundled_engine()), "onnxruntime", device="cuda:0")
        ours.append(("onnxruntime", "cuda:0"))
    except BackendError as error:
        print(error, file=sys.stderr)
    if not ours and not torch.cuda.is_available():
        return None
    return Setting(tuple(ours), "cuda", torch.float16, batches, LATENCY_CALLS, 2.0, soak)


def _rehearsal() -> Setting:
    return Setting((("openvino", None),), "cpu", torch.bfloat16, (1, 4), 10, 0.1, 20)


def _report(sections: dict[str, list[Row]], bars: list[Bar], *, rehearsed: bool) -> str:
    machine = describe_machine(*PACKAGES, "tensorrt", "onnxruntime-gpu", "cuda-bindings")
    gpu = cuda.gpu(0) if cuda.gpu_count() else None
    title = (
        "# Rehearsal on a CPU: proves the script only" if rehearsed else f"# Acceptance on {gpu.name if gpu else '?'}"
    )
    seen: Row = {
        **machine,
        "gpu": str(gpu),
        **{f"CUDA of the {name}": number for name, number in cuda.versions().items()},
        "torch has CUDA": str(torch.cuda.is_available()),
    }
    facts: list[Row] = [{"fact": name, "value": value} for name, value in seen.items()]
    parts = [title, to_markdown(facts), "## Bars", to_markdown([bar.row() for bar in bars])]
    for name, rows in sections.items():
        none = "None.\n" if name == "errors" else "Not measured.\n"
        parts += [f"## {name.capitalize()}", to_markdown(rows) if rows else none]
    return "\n".join(parts)


def _rows(sections: dict[str, list[Row]]) -> str:
    """Every row of every section with the machine's description, as the other benchmarks keep theirs."""
    machine = describe_machine(*PACKAGES, "tensorrt", "onnxruntime-gpu", "cuda-bindings")
    gpu = str(cuda.gpu(0)) if cuda.gpu_count() else ""
    return to_csv(
        [{"section": name, **row, "gpu": gpu, **machine} for name, found in sections.items() for row in found]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos for parity; default: scikit-image's samples")
    parser.add_argument("--model", action="append", help=f"default: ViT-B-32, ViT-L-14, ViT-H-14 and {peers.NANO}")
    parser.add_argument("--batch", type=int, action="append", help=f"default: {', '.join(map(str, BATCHES))}")
    parser.add_argument("--soak", type=int, default=10_000, help="batches that must not let memory grow")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_acceptance.md"))
    parser.add_argument("--rehearse", action="store_true", help="run on a CPU at small sizes, to try the script")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
