"""The whole way from a DeCLIP model to an engine file, in one function."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import write_engine
from declip_runtime.errors import ExportError, UsageError
from declip_runtime.manifest import License, Manifest, Preprocess, ScoreSpec
from declip_runtime.version import __version__
from declip_training.model.declip import DeCLIP

from .graph import EngineGraph
from .int8 import calibrate, smoothed, to_int8
from .onnx_graph import Array, trace
from .parity import measure_parity, require_parity
from .precision import to_fp16
from .weights import WEIGHTS, StorageDtype, WeightStore, head

Progress = Callable[[str], None]
"""Told what is done next, in a few words."""


def export_engine(
    declip: DeCLIP,
    preprocess: Preprocess,
    scores: Sequence[ScoreSpec],
    path: str | Path,
    *,
    weights_dtype: StorageDtype = "float16",
    int8_images: Array | None = None,
    parity_images: Array | None = None,
    semantic: bool = False,
    name: str | None = None,
    license: License | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> EngineFile:
    """Export ``declip`` to an engine file at ``path`` with the graphs fp32, fp16 and, on request, int8.

    ``scores`` describe the columns of ``declip``'s scores, in their order. ``int8_images`` uint8 [N, S, S, 3] are
    prepared real photos (8 at least, better 100) that calibrate the INT8 graph. ``parity_images`` of the same form
    are run through torch and every backend here; the rows are kept in the provenance, and a miss of the FP32 bar
    raises. ``name`` defaults to the file's stem. ``provenance`` is kept as given, together with the versions of what
    exported. The model is not changed.

    Raises ExportError for a tower that cannot be exported or misses parity, UsageError for arguments that do not fit
    together.
    """
    target = Path(path)
    if declip.averaging.shape[1] != len(scores):
        raise UsageError(f"the model has {declip.averaging.shape[1]} scores, {len(scores)} are described. Match them.")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist. Create it or choose another output.")
    if target.is_dir():
        raise UsageError(f"{target} is a folder. Name a file to write.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        work = Path(folder)
        engine = EngineGraph(declip, preprocess, semantic=semantic)
        precisions = _write_graphs(engine, work, weights_dtype, int8_images, progress)
        del engine  # a copy of all weights
        progress("checking the graphs")
        for precision in precisions:
            _check(work / f"{precision}.onnx")
        graphs = {precision: f"graphs/{precision}.onnx" for precision in precisions}
        entries = {WEIGHTS: work / WEIGHTS, **{graphs[p]: work / f"{p}.onnx" for p in precisions}}
        manifest = Manifest(
            name=name or target.stem,
            preprocess=preprocess,
            scores=tuple(scores),
            embedding_dim=declip.dim,
            logit_scale=declip.logit_scale,
            graphs=graphs,
            has_semantic=semantic,
            weights_dtype=weights_dtype,
            producer=f"declip-sdk {__version__}",
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            license=license,
            provenance={**(provenance or {}), "versions": {"torch": torch.__version__, "onnx": onnx.__version__}},
        )
        if parity_images is not None:
            progress(f"comparing with torch on {len(parity_images)} images")
            rows = measure_parity(declip, write_engine(work / "draft.engine", manifest, entries), parity_images)
            require_parity(rows)
            manifest = replace(manifest, provenance={**manifest.provenance, "parity": [asdict(r) for r in rows]})
        progress("writing the engine")
        return write_engine(target, manifest, entries)


def _write_graphs(
    engine: EngineGraph, work: Path, weights_dtype: StorageDtype, int8_images: Array | None, progress: Progress
) -> tuple[str, ...]:
    """Write weights.bin and one head a precision to ``work``; returns the precisions."""
    if weights_dtype == "float16":
        engine.round_weights()
    even, ranges = engine, None
    if int8_images is not None:
        progress(f"calibrating INT8 with {len(int8_images)} photos")
        even = smoothed(engine, int8_images)
        ranges = calibrate(even, int8_images)
    progress("tracing the graph to ONNX")
    graph = trace(engine, work)
    graphs = {"fp32": graph, "fp16": to_fp16(graph)}
    if ranges is not None:
        graphs["int8"] = to_int8(graph if even is engine else trace(even, work), ranges)
    progress("writing weights")
    with WeightStore(work / WEIGHTS, weights_dtype) as store:
        for precision, typed in graphs.items():
            (work / f"{precision}.onnx").write_bytes(head(typed, store))
    return tuple(graphs)


def _check(path: Path) -> None:
    """ONNX's own checker, types and shapes included."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the {path.stem} graph of this tower is not valid ONNX: {str(error).splitlines()[0]} "
            "Export another tower, and report this one."
        ) from error
