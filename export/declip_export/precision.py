"""FP16-typed copy of a graph: what strongly typed TensorRT needs, with islands where FP16 is known to fail.

FP32 stay: pixels and their normalisation (until the first product), LayerNorm and other reductions, softmax, the
head (L2 normalisation, cosine, sigmoid), and whatever the range audit found to be beyond FP16. Everything else
computes in FP16. Inputs and outputs keep their types. Quantized graphs are typed the same way, around their Q/DQ.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import NodeProto, TensorProto, helper

from .onnx_graph import QUANTIZING, OnnxGraph

QUANTIZED_OPSET = 19
"""The first in which Q/DQ take FP16 scales, and FP8."""

_ISLANDS = frozenset(
    {
        "LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization", "Softmax",
        "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "Pow", "Sqrt", "Reciprocal",
        "Exp", "Log",
    }
)  # fmt: skip
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_MOVES = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "Flatten", "Split", "Identity"})
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def to_fp16(graph: OnnxGraph, keep: Collection[str] = ()) -> OnnxGraph:
    """The same graph, typed; its constants are the original's arrays (``NAME.fp16`` where computed with in FP16).

    ``keep`` names values, constants too, that must never be FP16: what makes or reads one computes in FP32.
    """
    source = graph.copy()
    quantized = any(node.op_type in QUANTIZING for node in source.nodes)
    opset = QUANTIZED_OPSET if quantized else source.opset
    result = OnnxGraph([], {}, source.inputs, source.outputs, source.raw, source.types, opset)
    full = _full_precision(source, keep)
    casts: dict[tuple[str, int], str] = {}

    def typed(name: str, wanted: int) -> str:
        if name in source.constants:
            array = source.constants[name]
            if source.type_of(name) != _FLOAT or wanted == _FLOAT:
                result.constants[name] = array
                return name
            half = f"{name}.fp16"
            result.constants[half], result.types[half] = array, _HALF
            return half
        if result.types.get(name) not in (_FLOAT, _HALF) or result.types[name] == wanted:
            return name
        if (name, wanted) not in casts:
            cast = f"{name}.{'fp32' if wanted == _FLOAT else 'fp16'}"
            result.nodes.append(helper.make_node("Cast", [name], [cast], cast, to=wanted))
            result.types[cast] = wanted
            casts[name, wanted] = cast
        return casts[name, wanted]

    for index, node in enumerate(source.nodes):
        wanted = _FLOAT if index in full else _HALF
        # A Resize takes what it is to do as FP32, whatever the type of what it moves.
        kinds = [wanted if node.op_type != "Resize" or i == 0 else _FLOAT for i in range(len(node.input))]
        node.input[:] = [typed(name, kind) if name else name for name, kind in zip(node.input, kinds, strict=True)]
        if node.op_type == "Cast" and node.attribute[0].i == _FLOAT:
            node.attribute[0].i = wanted
        for name in node.output:
            if result.types.get(name) == _FLOAT:
                result.types[name] = wanted
        result.nodes.append(node)
    return result


def with_fp32_outputs(graph: OnnxGraph) -> OnnxGraph:
    """``graph``, changed: outputs that became FP16 are FP32 again, by a Cast each. Those of a head are FP32 anyway."""
    renamed = {o.name: f"{o.name}.half" for o in graph.outputs if graph.types.get(o.name) == _HALF}
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for name, half in renamed.items():
        graph.types[half], graph.types[name] = _HALF, _FLOAT
        graph.nodes.append(helper.make_node("Cast", [half], [name], f"{name}.cast", to=_FLOAT))
    return graph


def _full_precision(graph: OnnxGraph, keep: Collection[str]) -> set[int]:
    """Indices of the nodes that stay FP32."""
    pixels, head, kept = {i.name for i in graph.inputs}, set(graph.raw), set(keep)
    full: set[int] = set()
    for i, node in enumerate(graph.nodes):
        values = [  # not shapes
            n for n in node.input if n not in graph.constants and graph.types.get(n) in (_FLOAT, TensorProto.UINT8)
        ]
        if node.op_type in QUANTIZING and not kept.isdisjoint(node.input):
            kept.update(node.output)  # the same magnitudes
        if node.op_type not in PRODUCTS | QUANTIZING and values and pixels.issuperset(values):
            pixels.update(node.output)
            full.add(i)
        elif not head.isdisjoint(values):
            head.update(node.output)
            full.add(i)
        elif _is_island(node) or _constant_float(graph, node) or not kept.isdisjoint((*node.input, *node.output)):
            full.add(i)
    return full | _moves_between(graph, full)


def _is_island(node: NodeProto) -> bool:
    if node.op_type == "Resize":  # the nearest pixel is moved, others are computed
        return any(a.name == "mode" and bool(a.s != b"nearest") for a in node.attribute)
    return str(node.op_type) in _ISLANDS


def _moves_between(graph: OnnxGraph, full: set[int]) -> set[int]:
    """Nodes that only move values from FP32 nodes to FP32 nodes: rounding between the two would serve nothing."""
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.input:
            readers.setdefault(name, []).append(i)
    wanted: set[int] = set()
    for i, node in reversed([*enumerate(graph.nodes)]):
        read_by = [r for name in node.output for r in readers.get(name, [])]
        if node.op_type in _MOVES and read_by and all(r in full or r in wanted for r in read_by):
            wanted.add(i)
    made_full: set[str] = set()
    for i, node in enumerate(graph.nodes):
        if i in full or (i in wanted and node.input[0] in made_full):
            made_full.update(node.output)
    return {i for i in wanted if graph.nodes[i].output[0] in made_full}


def _constant_float(graph: OnnxGraph, node: NodeProto) -> bool:
    """Nodes that make a float of no float (ConstantOfShape, Cast of an integer shape) keep their type."""
    return not any(_is_float(graph, name) for name in node.input)


def _is_float(graph: OnnxGraph, name: str) -> bool:
    return graph.type_of(name) == int(_FLOAT)
