"""Does an engine compute what the model does? The same images through torch and every backend, as a table.

    python -m declip_export.parity --tower ViT-B-32 --photos FOLDER --int8 --fp8

Projectors are random and not zero here: trained or zero ones that hardly move an embedding would prove nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from declip_runtime.backends import available, choose
from declip_runtime.backends.base import Output
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendUnavailableError, ExportError, PrecisionError
from declip_runtime.machine import describe_machine
from declip_runtime.manifest import Preprocess
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Activation, Projector
from declip_training.model.prompts import PromptSet
from declip_training.model.tower import load_clip

from .evaluator import Evaluator
from .graph import EngineGraph
from .onnx_graph import Array, parse
from .photos import load_photos, sample_images

Bar = Literal["exact", "half"]

LIMITS: dict[Bar, tuple[float, float]] = {"exact": (1e-4, 0.99999), "half": (5e-3, 0.9995)}
"""Largest difference of a score, and the cosine that every embedding must be above."""

_BATCH = 8
_PRECISIONS = ("fp32", "bf16", "int8")
_TYPED = ("fp16", "int8-fp16", "fp8")


@dataclass(frozen=True)
class ParityRow:
    """How far ``subject`` is from ``reference`` on the same pixels.

    ``pairs`` of images, counted once a score, are ordered by both; ``swapped_pairs`` of them the other way round. A
    row with a ``bar`` must stay within its limits.
    """

    subject: str
    reference: str
    images: int
    max_score_difference: float
    mean_score_difference: float
    min_cosine: float
    pairs: int
    swapped_pairs: int
    bar: Bar | None

    @property
    def passed(self) -> bool:
        """False beyond the limits of ``bar``, and without one for what is not finite."""
        if self.bar is None:
            return math.isfinite(self.max_score_difference) and math.isfinite(self.min_cosine)
        score, cosine = LIMITS[self.bar]
        return self.max_score_difference <= score and self.min_cosine > cosine


def measure_parity(declip: DeCLIP, engine: EngineFile, images: Array) -> list[ParityRow]:
    """Rows for ``images`` uint8 [N, S, S, 3]: rewriting, storage, then every backend and precision usable here.

    Exact rows: the graph's torch module against the model as it was, and FP32 backends against torch with the weights
    as the engine stores them. The FP16 graph, emulated, has a bar of its own. FP16 storage, bf16, INT8 and FP8 are
    measured and stated.
    """
    manifest = engine.manifest
    graph = EngineGraph(declip, manifest.preprocess, semantic=manifest.has_semantic)
    model = _declip_output(declip, manifest.preprocess, images, manifest.has_semantic)
    stored = _graph_output(graph, images)
    rows = [_compare("graph in torch, fp32", "the model in torch, fp32", stored, model, "exact")]
    if manifest.weights_dtype == "float16":
        stored = _graph_output(graph.round_weights(), images)
        rows.append(_compare("fp16 storage, torch fp32", "the model in torch, fp32", stored, model, None))
    del graph
    for name, output, bar in (*_backend_outputs(engine, images), *_emulated_outputs(engine, images)):
        rows.append(_compare(name, "torch fp32, weights as stored", output, stored, bar))
    return rows


def require_parity(rows: Sequence[ParityRow]) -> None:
    """Raise ExportError naming the first row that is beyond its limits."""
    for row in rows:
        if row.passed:
            continue
        if row.bar == "half":
            fix = "On a GPU this tower needs more than FP16: export it for CPUs only, with --no-fp16."
        else:
            fix = "Do not use this engine; report the tower and the versions."
        raise ExportError(
            f"{row.subject} differs from {row.reference} by {row.max_score_difference:.2g} in a score (cosine "
            f"{row.min_cosine:.6f}). {fix}"
        )


def markdown(rows: Sequence[ParityRow], title: str) -> str:
    """The table with machine and versions above it."""
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine("torch", "open_clip_torch", "timm").items())
    lines = [
        f"### {title}",
        "",
        machine,
        "",
        "| what | against | images | max score difference | mean | min cosine | pairs swapped | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = "stated" if row.bar is None else f"{row.bar} " + ("met" if row.passed else "MISSED")
        lines.append(
            f"| {row.subject} | {row.reference} | {row.images} | {row.max_score_difference:.1e} "
            f"| {row.mean_score_difference:.1e} | {row.min_cosine:.6f} | {row.swapped_pairs} of {row.pairs} | {bar} |"
        )
    bars = (f"{bar}: scores within {score:g}, cosine above {cosine}" for bar, (score, cosine) in LIMITS.items())
    return "\n".join([*lines, "", f"Bars: {'; '.join(bars)}."])


def _backend_outputs(engine: EngineFile, images: Array) -> Iterator[tuple[str, Output, Bar | None]]:
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
            yield backend.description, _join(parts), "exact" if precision == "fp32" else None


def _emulated_outputs(engine: EngineFile, images: Array) -> Iterator[tuple[str, Output, Bar | None]]:
    """The graphs for GPUs, which no CPU backend runs as they are typed."""
    for name in _TYPED:
        if name in engine.manifest.graphs:
            yield f"{name} graph, emulated", emulate(engine, name, images), "half" if name == "fp16" else None


def emulate(engine: EngineFile, graph: str, images: Array) -> Output:
    """What a GPU makes of ``graph`` for ``images`` uint8 [N, S, S, 3], emulated on the CPU: it rounds and overflows."""
    path = engine.path.resolve()
    evaluator = Evaluator(parse(onnx.load_from_string(engine.graph(graph, path.name)), path.parent))
    return _join([Output(*evaluator.run(part)) for part in _batches(images)])


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


def _compare(subject: str, reference: str, output: Output, wanted: Output, bar: Bar | None) -> ParityRow:
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
        float(np.min(cosines)),  # numpy's, which passes NaN on
        *_orders(output.scores, wanted.scores),
        bar,
    )


def _orders(scores: Array, wanted: Array) -> tuple[int, int]:
    """Pairs of images, once a score, of [N, K] each, and those that the two order the other way round."""
    first, second = np.triu_indices(len(scores), 1)
    orders = [np.sign(s[first].astype(np.float64) - s[second]) for s in (scores, wanted)]
    return orders[0].size, int((orders[0] * orders[1] < 0).sum())


def _cosine(a: Array, b: Array) -> Array:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine: Array = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def main(arguments: Sequence[str] | None = None) -> int:
    """Export ``--tower`` with random projectors of both forms, each in both places, and print the tables.

    Returns 1 if a row misses its bar.
    """
    from .engine import export_engine

    options = _arguments(arguments)
    clip, tokenizer, preprocess = load_clip(options.tower, options.pretrained)
    quantized = options.int8 or options.fp8
    count = 2 * options.images if quantized else options.images
    photos = None if options.photos is None else load_photos(options.photos, preprocess, count)
    images = sample_images(preprocess.size, count) if photos is None else photos
    calibration = images[::2]
    if quantized:
        images = images[1::2]  # INT8 and FP8 are judged by what did not calibrate them
    prompts, generator = PromptSet.default(), torch.Generator().manual_seed(0)
    dim = prompts.encode(clip, tokenizer).pairs.shape[2]
    failed = False
    forms: tuple[tuple[Activation, Activation], ...] = (("between", "before"), ("before", "between"))
    for first, second in forms:
        perceptual, semantic = (Projector(dim, activation=form).randomize(generator) for form in (first, second))
        declip = DeCLIP.from_clip(clip, tokenizer, prompts, perceptual, semantic).eval()
        with tempfile.TemporaryDirectory() as folder:
            engine = export_engine(
                declip,
                preprocess,
                prompts.specs(),
                Path(folder) / "parity.engine",
                weights_dtype=options.weights,
                int8_images=calibration if options.int8 else None,
                fp8_images=calibration if options.fp8 else None,
                semantic=True,
            )
            rows = measure_parity(declip, engine, images)
        kind = "synthetic images" if photos is None else "photos"
        projectors = f"projectors: perceptual {first!r}, semantic {second!r}"
        title = f"{options.tower} ({options.pretrained}), {projectors}, {options.weights} storage, {kind}"
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
    parser.add_argument("--int8", action="store_true", help="INT8 graphs too, calibrated with as many others")
    parser.add_argument("--fp8", action="store_true", help="an FP8 graph too, calibrated likewise")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
