"""Does an engine compute what the model does? The same images through torch and every backend, as a table.

    python -m declip_export.parity --tower ViT-B-32 --photos FOLDER --int8

Projectors are random and not zero here: trained or zero ones that hardly move an embedding would prove nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from declip_runtime.backends import available, choose
from declip_runtime.backends.base import Output
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendUnavailableError, ExportError, PrecisionError
from declip_runtime.machine import describe_machine
from declip_runtime.manifest import Preprocess
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet
from declip_training.model.tower import load_clip

from .graph import EngineGraph
from .onnx_graph import Array
from .photos import load_photos, sample_images

SCORE_LIMIT = 1e-4
COSINE_LIMIT = 0.99999
_BATCH = 8
_PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class ParityRow:
    """How far ``subject`` is from ``reference`` on the same pixels; ``exact`` rows must stay within the limits."""

    subject: str
    reference: str
    images: int
    max_score_difference: float
    mean_score_difference: float
    min_cosine: float
    exact: bool

    @property
    def passed(self) -> bool:
        """False for an exact row beyond 1e-4 in a score or below 0.99999 in an embedding's cosine."""
        within = self.max_score_difference <= SCORE_LIMIT and self.min_cosine > COSINE_LIMIT
        return within or not self.exact


def measure_parity(declip: DeCLIP, engine: EngineFile, images: Array) -> list[ParityRow]:
    """Rows for ``images`` uint8 [N, S, S, 3]: rewriting, storage, then every backend and precision usable here.

    Exact rows: the graph's torch module against the model as it was, and FP32 backends against torch with the weights
    as the engine stores them. FP16 storage, bf16, the FP16 graph and INT8 are measured and stated.
    """
    manifest = engine.manifest
    graph = EngineGraph(declip, manifest.preprocess, semantic=manifest.has_semantic)
    model = _declip_output(declip, manifest.preprocess, images, manifest.has_semantic)
    stored = _graph_output(graph, images)
    rows = [_compare("graph in torch, fp32", "the model in torch, fp32", stored, model, exact=True)]
    if manifest.weights_dtype == "float16":
        stored = _graph_output(graph.round_weights(), images)
        rows.append(_compare("fp16 storage, torch fp32", "the model in torch, fp32", stored, model, exact=False))
    del graph
    for name, output, exact in _backend_outputs(engine, images):
        rows.append(_compare(name, "torch fp32, weights as stored", output, stored, exact=exact))
    return rows


def require_parity(rows: Sequence[ParityRow]) -> None:
    """Raise ExportError naming the first exact row that is beyond its limits."""
    for row in rows:
        if not row.passed:
            raise ExportError(
                f"{row.subject} differs from {row.reference} by {row.max_score_difference:.2g} in a score (cosine "
                f"{row.min_cosine:.6f}). Do not use this engine; report the tower and the versions."
            )


def markdown(rows: Sequence[ParityRow], title: str) -> str:
    """The table with machine and versions above it."""
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine("torch", "open_clip_torch", "timm").items())
    lines = [
        f"### {title}",
        "",
        machine,
        "",
        "| what | against | images | max score difference | mean | min cosine | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = ("met" if row.passed else "MISSED") if row.exact else "stated"
        lines.append(
            f"| {row.subject} | {row.reference} | {row.images} | {row.max_score_difference:.1e} "
            f"| {row.mean_score_difference:.1e} | {row.min_cosine:.6f} | {bar} |"
        )
    return "\n".join([*lines, "", f"Bar of exact rows: scores within {SCORE_LIMIT:g}, cosine above {COSINE_LIMIT}."])


def _backend_outputs(engine: EngineFile, images: Array) -> Iterator[tuple[str, Output, bool]]:
    for name, reason in available().items():
        if reason is not None or name == "fake":
            continue
        for precision in _PRECISIONS:
            try:
                backend = choose(engine, name, precision=precision)
            except (PrecisionError, BackendUnavailableError):
                continue  # a precision that this engine, backend or machine lacks makes no row
            parts = [backend.run(part) for part in _batches(images)]
            backend.close()
            yield backend.description, _join(parts), precision == "fp32"
    if "fp16" in engine.manifest.graphs and available()["onnxruntime"] is None:
        yield _typed_fp16(engine, images)


def _typed_fp16(engine: EngineFile, images: Array) -> tuple[str, Output, bool]:
    """The FP16 graph node by node on ONNX Runtime's CPU: slow, but it rounds and overflows where a GPU would."""
    import onnxruntime

    path = engine.path.resolve()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = onnxruntime.InferenceSession(engine.graph("fp16", path.name), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    parts = [Output(*session.run(names, {"images": part})) for part in _batches(images)]
    return f"fp16 graph, ONNX Runtime {onnxruntime.__version__}", _join(parts), False


@torch.no_grad()
def _declip_output(declip: DeCLIP, preprocess: Preprocess, images: Array, semantic: bool) -> Output:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    parts = []
    for part in _batches(images):
        out = declip((torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 - mean) / std)
        parts.append(Output(out.scores.numpy(), out.perceptual.numpy(), out.semantic.numpy() if semantic else None))
    return _join(parts)


@torch.no_grad()
def _graph_output(graph: EngineGraph, images: Array) -> Output:
    return _join([Output(*(t.numpy() for t in graph(torch.from_numpy(part)))) for part in _batches(images)])


def _batches(images: Array) -> Iterator[Array]:
    return (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))


def _join(parts: Sequence[Output]) -> Output:
    semantic = [p.semantic for p in parts if p.semantic is not None]
    return Output(
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.perceptual for p in parts]),
        np.concatenate(semantic) if semantic else None,
    )


def _compare(subject: str, reference: str, output: Output, wanted: Output, *, exact: bool) -> ParityRow:
    difference = np.abs(output.scores.astype(np.float64) - wanted.scores)
    cosines = [_cosine(output.perceptual, wanted.perceptual)]
    if output.semantic is not None and wanted.semantic is not None:
        cosines.append(_cosine(output.semantic, wanted.semantic))
    return ParityRow(
        subject,
        reference,
        len(difference),
        float(difference.max()),
        float(difference.mean()),
        float(min(c.min() for c in cosines)),
        exact,
    )


def _cosine(a: Array, b: Array) -> Array:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine: Array = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def main(arguments: Sequence[str] | None = None) -> int:
    """Export ``--tower`` with random projectors of both forms and print the table; 1 if an exact row misses its bar."""
    from .engine import export_engine

    options = _arguments(arguments)
    clip, tokenizer, preprocess = load_clip(options.tower, options.pretrained)
    count = 2 * options.images if options.int8 else options.images
    photos = None if options.photos is None else load_photos(options.photos, preprocess, count)
    images = sample_images(preprocess.size, count) if photos is None else photos
    calibration = images[::2] if options.int8 else None
    if options.int8:
        images = images[1::2]  # INT8 is judged by what did not calibrate it
    prompts, generator = PromptSet.default(), torch.Generator().manual_seed(0)
    dim = prompts.encode(clip, tokenizer).pairs.shape[2]
    failed = False
    for form in ("between", "before"):
        perceptual = Projector(dim, activation=form).randomize(generator)
        declip = DeCLIP.from_clip(clip, tokenizer, prompts, perceptual).eval()
        with tempfile.TemporaryDirectory() as folder:
            engine = export_engine(
                declip,
                preprocess,
                prompts.specs(),
                Path(folder) / "parity.engine",
                weights_dtype=options.weights,
                int8_images=calibration,
            )
            rows = measure_parity(declip, engine, images)
        kind = "synthetic images" if photos is None else "photos"
        title = f"{options.tower} ({options.pretrained}), projector {form!r}, {options.weights} storage, {kind}"
        sys.stdout.write(markdown(rows, title) + "\n\n")
        sys.stdout.flush()
        failed |= not all(row.passed for row in rows)
    return int(failed)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m declip_export.parity", description=__doc__)
    parser.add_argument("--tower", required=True, help="open_clip model name or configuration file")
    parser.add_argument("--pretrained", default="random", help="open_clip tag, checkpoint, or random")
    parser.add_argument("--photos", type=Path, help="folder with photos; synthetic images otherwise")
    parser.add_argument("--images", type=int, default=32, help="how many images (default 32)")
    parser.add_argument("--weights", choices=("float16", "float32"), default="float16")
    parser.add_argument("--int8", action="store_true", help="an INT8 graph too, calibrated with as many others")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
