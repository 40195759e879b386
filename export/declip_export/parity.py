"""Does an engine compute what the model does? The same images through torch and every CPU backend, as a table.

    python -m declip_export.parity --tower ViT-B-32 --photos FOLDER --int8 --fp8
    python -m declip_export.parity --tower ViT-B-32 --photos FOLDER --backend tensorrt

What a GPU makes of an engine is emulated, as long as no backend is named: building plans takes minutes.

Projectors are random and not zero here: trained or zero ones that hardly move an embedding would prove nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import torch

from declip_runtime.backends import AUTO, available, choose
from declip_runtime.backends.base import Output, Precision
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import DeclipError, ExportError, PrecisionError
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

Bar = Literal["exact", "half", "coarse"]

LIMITS: dict[Bar, tuple[float, float]] = {"exact": (1e-4, 0.99999), "half": (5e-3, 0.9995), "coarse": (0.15, 0.98)}
"""Largest difference of a score, and the cosine that every embedding must be above.

Coarse is what separates a graph that costs exactness from one whose scores mean nothing.
"""

_BATCH = 8
_ON_CPU = ("openvino", "onnxruntime")
_BARS: dict[str, Bar] = {"fp32": "exact", "fp16": "half", "int8": "coarse", "int8-fp16": "coarse", "fp8": "coarse"}
_TYPED = ("fp16", "int8-fp16", "fp8")


@dataclass(frozen=True)
class ParityRow:
    """How far ``subject`` is from ``reference`` on the same pixels.

    ``pairs`` of images, counted once a score, are ordered by both; ``swapped_pairs`` of them the other way round. Of
    these are ``clear_swaps`` which the reference holds apart by more than the half bar's limit of a score: nearer ones
    may change places, as with random weights many do. A row with a ``bar`` must stay within its limits and, unless the
    bar is coarse, swap no clear pair.
    """

    subject: str
    reference: str
    images: int
    max_score_difference: float
    mean_score_difference: float
    min_cosine: float
    pairs: int
    swapped_pairs: int
    clear_swaps: int
    bar: Bar | None

    @property
    def passed(self) -> bool:
        """False beyond the limits of ``bar``, and without one for what is not finite."""
        if self.bar is None:
            return math.isfinite(self.max_score_difference) and math.isfinite(self.min_cosine)
        score, cosine = LIMITS[self.bar]
        ordered = self.bar == "coarse" or not self.clear_swaps
        return self.max_score_difference <= score and self.min_cosine > cosine and ordered


@dataclass(frozen=True)
class Named:
    """A backend that is asked for by name, with the device as it names it, and where it keeps what it compiles."""

    backend: str
    device: str | None = None
    cache: Cache | None = None


def measure_parity(declip: DeCLIP, engine: EngineFile, images: Array, named: Named | None = None) -> list[ParityRow]:
    """Rows for ``images`` uint8 [N, S, S, 3]: rewriting, storage, then the CPU's backends in every precision they have.

    And those of the ``named`` backend, which may build plans for minutes; BackendError where it cannot be had.

    Exact rows: the graph's torch module against the model as it was, and FP32 backends against torch with the weights
    as the engine stores them. The FP16 graph, emulated or on the named backend, has a bar of its own, INT8 and FP8 a
    coarse one. FP16 storage and bf16 are measured and stated.
    """
    manifest = engine.scorer
    graph = EngineGraph(declip, manifest.preprocess, semantic=manifest.has_semantic)
    model = _declip_output(declip, manifest.preprocess, images, manifest.has_semantic)
    stored = _graph_output(graph, images)
    rows = [_compare("graph in torch, fp32", "the model in torch, fp32", stored, model, "exact")]
    if manifest.weights_dtype == "float16":
        stored = _graph_output(graph.round_weights(), images)
        rows.append(_compare("fp16 storage, torch fp32", "the model in torch, fp32", stored, model, None))
    del graph
    for name, output, bar in _outputs(engine, images, named):
        rows.append(_compare(name, "torch fp32, weights as stored", output, stored, bar))
    return rows


def require_parity(rows: Sequence[ParityRow]) -> None:
    """Raise ExportError naming the first row that is beyond its limits."""
    for row in rows:
        if row.passed:
            continue
        if row.bar == "half":
            fix = "On a GPU this tower needs more than FP16: export it for CPUs only, with --no-fp16."
        elif row.bar == "coarse":
            fix = "Calibrate with more photos like those to be scored, or leave this precision out."
        else:
            fix = "Do not use this engine; report the tower and the versions."
        raise ExportError(
            f"{row.subject} differs from {row.reference} by {row.max_score_difference:.2g} in a score (cosine "
            f"{row.min_cosine:.6f}; {row.clear_swaps} clear pairs of images swapped). {fix}"
        )


def markdown(rows: Sequence[ParityRow], title: str) -> str:
    """The table with machine and versions above it."""
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine("torch", "open_clip_torch", "timm").items())
    lines = [
        f"### {title}",
        "",
        machine,
        "",
        "| what | against | images | max score difference | mean | min cosine | pairs swapped | clear ones | bar |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = "stated" if row.bar is None else f"{row.bar} " + ("met" if row.passed else "MISSED")
        lines.append(
            f"| {row.subject} | {row.reference} | {row.images} | {row.max_score_difference:.1e} "
            f"| {row.mean_score_difference:.1e} | {row.min_cosine:.6f} | {row.swapped_pairs} of {row.pairs} "
            f"| {row.clear_swaps} | {bar} |"
        )
    bars = (f"{bar}: scores within {score:g}, cosine above {cosine}" for bar, (score, cosine) in LIMITS.items())
    clear = f"exact and half: no clear pair swapped, one more than {LIMITS['half'][0]:g} apart in the reference"
    return "\n".join([*lines, "", f"Bars: {'; '.join(bars)}; {clear}."])


def orders(scores: Array, wanted: Array) -> tuple[int, int, int]:
    """How many pairs of images there are, once a score, of [N, K] each; how many of them the two order the other way
    round; and how many of these are clear: further apart in ``wanted`` than the half bar lets a score change.

    Twice as far could not tell anything: who keeps the scores' bar cannot swap those.
    """
    first, second = np.triu_indices(len(scores), 1)
    found, reference = (s[first].astype(np.float64) - s[second] for s in (scores, wanted))
    swapped = np.sign(found) * np.sign(reference) < 0
    clear = swapped & (np.abs(reference) > LIMITS["half"][0])
    return swapped.size, int(swapped.sum()), int(clear.sum())


def _outputs(engine: EngineFile, images: Array, named: Named | None) -> Iterator[tuple[str, Output, Bar | None]]:
    usable = available()
    for name in _ON_CPU:
        if usable[name] is None:
            yield from _backend_outputs(engine, images, Named(name, "cpu"))
    if named is not None:
        yield from _backend_outputs(engine, images, named)
    yield from _emulated_outputs(engine, images)


def _backend_outputs(engine: EngineFile, images: Array, which: Named) -> Iterator[tuple[str, Output, Bar | None]]:
    for precision in get_args(Precision):
        try:
            backend = choose(engine, which.backend, device=which.device, precision=precision, cache=which.cache)
        except PrecisionError:
            continue  # one that this engine, backend or machine lacks makes no row
        with closing(backend):
            parts = [backend.run(part) for part in _batches(images)]
            yield backend.description, _join(parts), _BARS.get(precision)


def _emulated_outputs(engine: EngineFile, images: Array) -> Iterator[tuple[str, Output, Bar | None]]:
    """The graphs for GPUs, which no CPU backend runs as they are typed."""
    for name in _TYPED:
        if name in engine.manifest.graphs:
            yield f"{name} graph, emulated", emulate(engine, name, images), _BARS[name]


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
        *orders(output.scores, wanted.scores),
        bar,
    )


def _cosine(a: Array, b: Array) -> Array:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine: Array = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def main(arguments: Sequence[str] | None = None) -> int:
    """Export ``--tower`` with random projectors of both forms, each in both places, and print the tables.

    Returns 1 if a row misses its bar, 2 and the reason where the models cannot be compared.
    """
    options = _arguments(arguments)
    try:
        return int(_compared(options))
    except DeclipError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _compared(options: argparse.Namespace) -> bool:
    """Whether a row misses its bar; prints the tables."""
    from .engine import export_engine

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
    with tempfile.TemporaryDirectory() as folder:
        # Not the user's cache: these engines are never seen again, but TensorRT's timings serve the second form too.
        cache = Cache(Path(folder) / "cache")
        named = None if options.backend is None else Named(options.backend, options.device, cache)
        for first, second in forms:
            perceptual, semantic = (Projector(dim, activation=form).randomize(generator) for form in (first, second))
            declip = DeCLIP.from_clip(clip, tokenizer, prompts, perceptual, semantic).eval()
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
            rows = measure_parity(declip, engine, images, named)
            kind = "synthetic images" if photos is None else "photos"
            projectors = f"projectors: perceptual {first!r}, semantic {second!r}"
            title = f"{options.tower} ({options.pretrained}), {projectors}, {options.weights} storage, {kind}"
            sys.stdout.write(markdown(rows, title) + "\n\n")
            sys.stdout.flush()
            failed |= not all(row.passed for row in rows)
    return failed


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m declip_export.parity", description=__doc__)
    parser.add_argument("--tower", required=True, help="open_clip model name or configuration file")
    parser.add_argument("--pretrained", default="random", help="open_clip tag, checkpoint, or random")
    parser.add_argument("--photos", type=Path, help="folder with photos; synthetic images otherwise")
    parser.add_argument("--images", type=int, default=32, help="how many images (default 32)")
    parser.add_argument("--weights", choices=("float16", "float32"), default="float16")
    parser.add_argument("--int8", action="store_true", help="INT8 graphs too, calibrated with as many others")
    parser.add_argument("--fp8", action="store_true", help="an FP8 graph too, calibrated likewise")
    parser.add_argument("--backend", choices=AUTO, help="rows of this backend too; TensorRT builds plans for minutes")
    parser.add_argument("--device", help="its device, as the backend names it: for onnxruntime cuda or tensorrt")
    options = parser.parse_args(arguments)
    if options.device is not None and options.backend is None:
        parser.error("--device is the device of --backend. Name the backend too.")
    return options


if __name__ == "__main__":
    sys.exit(main())
