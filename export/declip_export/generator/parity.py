"""Does a generator compute what diffusers does? The same inputs through diffusers and every CPU backend, as a table.

    python -m declip_export.generator.parity --base PATH --adapter FILE --tower ViT-H-14 --pretrained laion2b_s32b_b79k

exports as ``declip export-generator`` does, to a place that is gone afterwards, and prints the table; models of random
weights at full size are made by ``random_diffusion.write_random_sd15`` beside the benchmarks. Differences are
relative: the largest of an output, by the largest magnitude of what diffusers gives.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from declip_export.evaluator import Evaluator
from declip_export.onnx_graph import Array, OnnxGraph
from declip_runtime.backends import available, choose
from declip_runtime.backends.base import Precision
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import DeclipError, ExportError, PrecisionError
from declip_runtime.machine import describe_machine

from .references import Case

Bar = Literal["exact", "half"]
Kind = Literal["fp32", "fp16"]

LIMITS: dict[Bar, float] = {"exact": 1e-3, "half": 3e-2}
"""The largest relative difference."""

_ON_CPU = ("openvino", "onnxruntime")
_BARS: dict[str, Bar] = {"fp32": "exact", "fp16": "half"}


@dataclass(frozen=True)
class GeneratorParity:
    """How far ``subject`` is from diffusers in one case of a component; with a ``bar`` it has a limit."""

    component: str
    case: str
    subject: str
    relative_error: float
    bar: Bar | None

    @property
    def passed(self) -> bool:
        """False beyond the limit of ``bar``, and without one for what is not finite."""
        return math.isfinite(self.relative_error) if self.bar is None else self.relative_error <= LIMITS[self.bar]


def measure_emulated(graph: OnnxGraph, kind: Kind, cases: Sequence[Case]) -> list[GeneratorParity]:
    """Rows for the ``cases`` of a graph's component, run node by node with every value rounded to its type."""
    evaluator = Evaluator(graph)
    names = [output.name for output in graph.outputs]
    return [
        _row(case, f"{kind} graph, emulated", dict(zip(names, evaluator.run(case.feeds), strict=True)), _BARS[kind])
        for case in cases
    ]


def measure_backends(engine: EngineFile, cases: Sequence[Case]) -> list[GeneratorParity]:
    """Rows for ``cases`` on every CPU backend that is installed, in every precision it has; one model at a time."""
    usable = available()
    components = dict.fromkeys(case.component for case in cases)
    rows = []
    for name in _ON_CPU:
        if usable[name] is None:
            for component in components:
                chosen = [case for case in cases if case.component == component]
                rows += [row for precision in get_args(Precision) for row in _backend(engine, name, precision, chosen)]
    return rows


def require_parity(rows: Sequence[GeneratorParity]) -> None:
    """Raise ExportError naming the first row that is beyond its limit."""
    for row in rows:
        if not row.passed:
            if row.bar == "half":
                fix = "On a GPU this model needs more than FP16: export it for CPUs only, with --no-fp16."
            else:
                fix = "Do not use this engine; report the models and the versions."
            limit = "" if row.bar is None else f", allowed is {LIMITS[row.bar]:g}"
            raise ExportError(
                f"{row.component}, {row.case}: {row.subject} differs from diffusers by {row.relative_error:.2g} of the "
                f"largest value{limit}. {fix}"
            )


def markdown(rows: Sequence[GeneratorParity], title: str) -> str:
    """The table with machine and versions above it."""
    found = describe_machine("torch", "diffusers", "transformers", "onnx")
    lines = [
        f"### {title}",
        "",
        ", ".join(f"{key} {value}" for key, value in found.items()),
        "",
        "| component | case | what | relative error | bar |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        bar = "stated" if row.bar is None else f"{row.bar} " + ("met" if row.passed else "MISSED")
        lines.append(f"| {row.component} | {row.case} | {row.subject} | {row.relative_error:.1e} | {bar} |")
    bars = ", ".join(f"{bar} {limit:g}" for bar, limit in LIMITS.items())
    return "\n".join([*lines, "", f"Largest difference by the largest magnitude that diffusers gives. Bars: {bars}."])


def _backend(engine: EngineFile, name: str, precision: Precision, cases: Sequence[Case]) -> Iterator[GeneratorParity]:
    component = cases[0].component
    try:
        backend = choose(engine, name, component=component, device="cpu", precision=precision)
    except PrecisionError:
        return  # one that this engine, backend or machine lacks makes no row
    with closing(backend):
        for case in cases:
            yield _row(case, backend.description, backend.compute(case.feeds), _BARS.get(precision))


def _row(case: Case, subject: str, found: Mapping[str, Array], bar: Bar | None) -> GeneratorParity:
    errors = [relative_error(found[name], wanted) for name, wanted in case.wanted.items()]
    return GeneratorParity(case.component, case.name, subject, float(np.max(errors)), bar)  # numpy's passes NaN on


def relative_error(found: Array, wanted: Array) -> float:
    """The largest difference by the largest magnitude wanted."""
    difference = np.abs(found.astype(np.float64) - wanted)
    return float(difference.max() / np.abs(wanted.astype(np.float64)).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the models named and print the table. Returns 1, and the reason instead, where that fails."""
    options = _arguments(arguments)
    try:
        sys.stdout.write(_compared(options) + "\n")
    except DeclipError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _compared(options: argparse.Namespace) -> str:
    """The table. Raises DeclipError where a model cannot be loaded, or a row misses its bar."""
    from .adapter import load_adapter
    from .base import load_base
    from .embedder import load_embedder
    from .engine import export_generator

    embedder = load_embedder(options.tower, options.pretrained, options.checkpoint, dtype=options.weights)
    base = load_base(options.base, dtype=options.weights, variant=options.variant)
    adapter = load_adapter(options.adapter, base)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        engine = export_generator(
            base, adapter, embedder, Path(folder) / "parity.engine", weights_dtype=options.weights
        )
        rows = [GeneratorParity(**row) for row in engine.manifest.provenance["parity"]]
    title = f"{options.base}, {options.adapter}, {embedder.tower} ({embedder.pretrained}), {options.weights} storage"
    return markdown(rows, title)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m declip_export.generator.parity")
    parser.add_argument("--base", required=True, help="folder, checkpoint file or hub id of a Stable Diffusion")
    parser.add_argument("--variant", help="files of its repository to take, as fp16")
    parser.add_argument("--adapter", required=True, help="an IP-Adapter's file, or ID:FILE")
    parser.add_argument("--checkpoint", help="DeCLIP projectors")
    parser.add_argument("--tower", help="open_clip model name; default: the checkpoint's")
    parser.add_argument("--pretrained", help="open_clip tag, checkpoint, or random; default: the checkpoint's")
    parser.add_argument("--weights", choices=("float16", "float32"), default="float16")
    parser.add_argument("--folder", type=Path, help="where the engine is meanwhile (default: the system's place)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
