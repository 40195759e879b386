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
from declip_runtime.manifest import License, Preprocess
from declip_runtime.scorer_manifest import ScorerManifest, ScoreSpec
from declip_runtime.version import __version__
from declip_training.model.declip import DeCLIP

from .calibrate import calibrate, smoothed
from .graph import EngineGraph
from .onnx_graph import Array, OnnxGraph, trace
from .parity import measure_parity, require_parity
from .photos import sample_images
from .quantize import FP8, INT8, quantized
from .range_audit import RangeAudit, audit_range
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
    fp16: bool = True,
    int8_images: Array | None = None,
    fp8_images: Array | None = None,
    parity_images: Array | None = None,
    semantic: bool = False,
    name: str | None = None,
    license: License | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> EngineFile:
    """Export ``declip`` to an engine file at ``path`` with the graph fp32 and those named below.

    ``scores`` describe the columns of ``declip``'s scores, in their order. ``fp16`` adds the graph fp16, which GPUs
    run; what FP16 cannot hold stays FP32 there, as far as the calibrating images, else ``parity_images``, else
    synthetic ones show it, and the audit's summary is kept in the provenance. ``int8_images`` uint8 [N, S, S, 3] are
    prepared real photos (8 at least, better 100) that calibrate INT8: the graph int8 for CPUs and, with ``fp16``,
    int8-fp16 for GPUs. ``fp8_images`` likewise add the graph fp8, for GPUs only. ``parity_images`` of the same form
    are run through torch, every CPU backend here and the emulation of what GPUs run; the rows are kept in the
    provenance, and a miss of a bar raises. ``name`` defaults to the file's stem. ``provenance`` is kept as given,
    together with the versions of what exported. The model is not changed.

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
    if fp8_images is not None and not fp16:
        raise UsageError("FP8 needs FP16 around it. Leave FP16 in, or FP8 out.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        work = Path(folder)
        engine = EngineGraph(declip, preprocess, semantic=semantic)
        if weights_dtype == "float16":
            engine.round_weights()
        given = (i for i in (int8_images, fp8_images, parity_images) if i is not None)
        audited = next(given, sample_images(preprocess.size)) if fp16 else None
        typed, audits = _typed(engine, work, int8_images, fp8_images, audited, progress)
        progress("writing weights")
        with WeightStore(work / WEIGHTS, weights_dtype) as store:
            for precision, graph in typed.items():
                (work / f"{precision}.onnx").write_bytes(head(graph, store))
        precisions = tuple(typed)
        del engine, typed, graph  # all weights, more than once
        progress("checking the graphs")
        for precision in precisions:
            _check(work / f"{precision}.onnx")
        graphs = {precision: f"graphs/{precision}.onnx" for precision in precisions}
        entries = {WEIGHTS: work / WEIGHTS, **{graphs[p]: work / f"{p}.onnx" for p in precisions}}
        manifest = ScorerManifest(
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
            provenance={
                **(provenance or {}),
                "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
                "range_audit": {precision: audit.summary() for precision, audit in audits.items()},
            },
        )
        if parity_images is not None:
            progress(f"comparing with torch on {len(parity_images)} images")
            rows = measure_parity(declip, write_engine(work / "draft.engine", manifest, entries), parity_images)
            require_parity(rows)
            manifest = replace(manifest, provenance={**manifest.provenance, "parity": [asdict(r) for r in rows]})
        progress("writing the engine")
        return write_engine(target, manifest, entries)


def _typed(
    engine: EngineGraph,
    work: Path,
    int8_images: Array | None,
    fp8_images: Array | None,
    audited: Array | None,
    progress: Progress,
) -> tuple[dict[str, OnnxGraph], dict[str, RangeAudit]]:
    """The graph in each precision, and the audits that those typed FP16 rest on; without ``audited`` images none is."""
    progress("tracing the graph to ONNX")
    graph = trace(engine, work)
    graphs: dict[str, OnnxGraph] = {"fp32": graph}
    audits: dict[str, RangeAudit] = {}
    if audited is not None:
        progress("looking for values beyond FP16")
        audits["fp16"] = audit_range(graph, audited)
        graphs["fp16"] = audits["fp16"].to_fp16(graph)
    if int8_images is not None:
        progress(f"calibrating INT8 with {len(int8_images)} photos")
        even = smoothed(engine, int8_images)
        ranges = calibrate(even, int8_images)
        plain = graph if even is engine else trace(even, work)
        graphs["int8"] = quantized(plain, ranges, INT8)
        if audited is not None:
            audits["int8-fp16"] = audits["fp16"] if even is engine else audit_range(plain, audited)
            graphs["int8-fp16"] = audits["int8-fp16"].to_fp16(graphs["int8"])
    if fp8_images is not None:
        progress(f"calibrating FP8 with {len(fp8_images)} photos")
        graphs["fp8"] = audits["fp16"].to_fp16(quantized(graph, calibrate(engine, fp8_images, FP8), FP8))
    return graphs, audits


def _check(path: Path) -> None:
    """ONNX's own checker, types and shapes included."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the {path.stem} graph of this tower is not valid ONNX: {str(error).splitlines()[0]} "
            "Export another tower, and report this one."
        ) from error
