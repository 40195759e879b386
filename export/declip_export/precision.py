"""FP16-typed copy of a graph: what strongly typed TensorRT needs, with islands where FP16 is known to fail.

FP32 stay: pixels and their normalisation (until the first product), LayerNorm and other reductions, softmax, and the
head (L2 normalisation, cosine, sigmoid). Everything else computes in FP16. Inputs and outputs keep their types.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from .onnx_graph import OnnxGraph

_ISLANDS = frozenset(
    {
        "LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization", "Softmax",
        "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "Pow", "Sqrt", "Reciprocal",
        "Exp", "Log", "Resize",
    }
)  # fmt: skip
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def to_fp16(graph: OnnxGraph) -> OnnxGraph:
    """The same graph, typed; its constants are the original's arrays (``NAME.fp16`` where computed with in FP16)."""
    source = graph.copy()
    result = OnnxGraph([], {}, source.inputs, source.outputs, source.raw, source.types)
    full = _full_precision(source)
    casts: dict[tuple[str, int], str] = {}

    def typed(name: str, wanted: int) -> str:
        if name in source.constants:
            array = source.constants[name]
            if array.dtype != "float32" or wanted == _FLOAT:
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

    for i, node in enumerate(source.nodes):
        wanted = _FLOAT if i in full else _HALF
        node.input[:] = [typed(name, wanted) if name else name for name in node.input]
        if node.op_type == "Cast" and node.attribute[0].i == _FLOAT:
            node.attribute[0].i = wanted
        for name in node.output:
            if result.types.get(name) == _FLOAT:
                result.types[name] = wanted
        result.nodes.append(node)
    return result


def _full_precision(graph: OnnxGraph) -> set[int]:
    """Indices of the nodes that stay FP32."""
    pixels, head = {i.name for i in graph.inputs}, set(graph.raw)
    full: set[int] = set()
    for i, node in enumerate(graph.nodes):
        values = [n for n in node.input if n and n not in graph.constants]
        if node.op_type not in _PRODUCTS and values and pixels.issuperset(values):
            pixels.update(node.output)
            full.add(i)
        elif not head.isdisjoint(values):
            head.update(node.output)
            full.add(i)
        elif node.op_type in _ISLANDS or _constant_float(graph, node):
            full.add(i)
    return full


def _constant_float(graph: OnnxGraph, node: NodeProto) -> bool:
    """Nodes that make a float of no float value (ConstantOfShape, Cast of an integer shape) keep their type."""
    return all(graph.types.get(n) != _FLOAT for n in node.input if n not in graph.constants)
