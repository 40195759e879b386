"""From the engine's torch module to a small ONNX graph whose weights stay outside of protobuf."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, ValueInfoProto, external_data_helper, helper, numpy_helper
from torch import Tensor, nn

from declip_runtime.errors import ExportError

from .graph import EngineGraph

OPSET = 18
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PREFIX = "engine."  # of parameters seen through _Traced

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class OnnxGraph:
    """A graph in FP32 with its constants beside it as arrays (large ones mapped from disk, not in memory).

    ``raw`` names the projected embeddings: what follows from them is the head, FP32 in every precision. ``types``
    maps every value that is not a constant to its ONNX element type, and a constant that is written in another type
    than its array's to that one: FP16 arrays may be the FP32 constants of a model too large to hold in FP32.
    """

    nodes: list[NodeProto]
    constants: dict[str, Array]
    inputs: list[ValueInfoProto]
    outputs: list[ValueInfoProto]
    raw: tuple[str, ...]
    types: dict[str, int] = field(default_factory=dict)
    opset: int = OPSET

    def copy(self) -> OnnxGraph:
        """Nodes and tables of their own; arrays are shared, since no pass changes one in place."""
        return OnnxGraph(
            copy.deepcopy(self.nodes),
            dict(self.constants),
            self.inputs,
            self.outputs,
            self.raw,
            dict(self.types),
            self.opset,
        )

    def type_of(self, name: str) -> int | None:
        """The ONNX element type of a value or constant, None where it is not known."""
        declared = self.types.get(name)
        if declared is None and name in self.constants:
            return int(helper.np_dtype_to_tensor_dtype(self.constants[name].dtype))
        return declared

    def prune(self) -> None:
        """Drop nodes and constants that no output needs."""
        needed = {o.name for o in self.outputs}
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {n: a for n, a in self.constants.items() if n in needed}


class _Traced(nn.Module):
    """The engine with its projected embeddings as extra outputs, so that they can be found in the graph."""

    def __init__(self, engine: EngineGraph) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.engine.embed(images)
        return (*self.engine.head(*raw), *raw)


def trace(engine: EngineGraph, folder: Path) -> OnnxGraph:
    """Export ``engine`` with a dynamic batch; ``folder`` gets the FP32 weights and must outlive the result.

    Raises ExportError for a tower that torch cannot export with a dynamic batch.
    """
    names = ["scores", "perceptual", *(["semantic"] if engine.semantic is not None else [])]
    return trace_images(_Traced(engine), engine.size, names, folder, [f"raw_{n}" for n in names[1:]])


def trace_images(
    module: nn.Module, size: int, outputs: Sequence[str], folder: Path, raw: Sequence[str] = ()
) -> OnnxGraph:
    """Export ``module``, of ``images`` uint8 [B, size, size, 3], with a dynamic batch.

    It gives ``outputs``, then the values that ``OnnxGraph.raw`` names. ``folder`` gets the FP32 weights and must
    outlive the result. Raises ExportError for a module that torch cannot export so.
    """
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside torch's exporter, nothing a user could act on
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=[*outputs, *raw],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), "")
        raise ExportError(
            f"torch cannot export this tower as a graph with a free batch size: {reason} Export another tower."
        ) from error
    if program is None:
        raise ExportError("torch's exporter gave no graph. Update torch: pip install -U torch onnxscript")
    path = Path(tempfile.mkdtemp(dir=folder)) / "traced.onnx"
    try:
        program.save(str(path), external_data=True)
    except OSError as error:
        raise ExportError(
            f"cannot write the traced graph into {folder.parent}: {error.strerror or error}. Free some space, or write "
            "the engine to another folder."
        ) from error
    graph = _load(path, tuple(raw))
    _cast_first(graph)
    return _tidy(graph, outputs)


def parse(model: onnx.ModelProto, folder: Path) -> OnnxGraph:
    """``model`` as it is, its external data mapped from the files in ``folder``; ``raw`` is empty."""
    constants: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            constants[tensor.name] = np.memmap(
                folder / info.location,
                dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
                mode="c",  # torch shares memory with arrays only that could be written to
                offset=info.offset or 0,
                shape=math.prod(tensor.dims),
            ).reshape(tensor.dims)
        else:
            constants[tensor.name] = numpy_helper.to_array(tensor)
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return OnnxGraph(
        list(model.graph.node),
        constants,
        list(model.graph.input),
        list(model.graph.output),
        (),
        {v.name: v.type.tensor_type.elem_type for v in values},
        next(o.version for o in model.opset_import if not o.domain),
    )


def _load(path: Path, raw: tuple[str, ...]) -> OnnxGraph:
    model = onnx.load(str(path), load_external_data=False)
    if model.functions:
        raise ExportError(f"torch left the function {model.functions[0].name} in the graph. Export another tower.")
    graph = parse(model, path.parent)
    for node in graph.nodes:
        node.input[:] = [name.removeprefix(_PREFIX) for name in node.input]
    constants = {name.removeprefix(_PREFIX): array for name, array in graph.constants.items()}
    return replace(graph, constants=constants, raw=raw)


def _tidy(graph: OnnxGraph, outputs: Sequence[str]) -> OnnxGraph:
    graph.outputs = [o for o in graph.outputs if o.name in outputs]
    kept: list[NodeProto] = []
    aliases: dict[str, str] = {}
    for node in graph.nodes:
        del node.metadata_props[:]  # stack traces of the machine that exported
        node.doc_string = ""
        node.input[:] = [aliases.get(name, name) for name in node.input]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Transpose" and node.input[0] in graph.constants:
            # Linear layers of towers that are exported as they are: transposed once here instead of on every machine.
            permutation = list(node.attribute[0].ints) if node.attribute else None
            graph.constants[node.output[0]] = np.transpose(graph.constants[node.input[0]], permutation)
        elif node.op_type == "Identity" and node.output[0] not in outputs:
            aliases[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    graph.nodes = kept
    graph.prune()
    return graph


def _cast_first(graph: OnnxGraph) -> None:
    """Let nothing but one Cast see the uint8 input; what asks for its shape asks the Cast's result instead."""
    source = graph.inputs[0].name
    cast = next(node for node in graph.nodes if node.op_type == "Cast" and node.input[0] == source)
    graph.nodes.remove(cast)
    for node in graph.nodes:
        node.input[:] = [cast.output[0] if name == source else name for name in node.input]
    graph.nodes.insert(0, cast)
