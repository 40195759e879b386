"""An ONNX graph node by node in torch, every value in the type that the graph gives it.

A runtime's CPU provider does not show what a GPU does with an FP16 graph: ONNX Runtime computes its nodes in FP32 and
leaves out the rounding between them, so what overflows on a GPU passes there. Here no two nodes are fused. A node
computes in FP32, sums included, and its result is rounded to the node's own type, where FP16 overflows to infinity.
A GPU that sums in FP16 too errs about twice as much: .0005 instead of .0003 in a score of ViT-B-32, where sums were
rounded every 16 terms. Operators that take time are torch's, the others those of onnx's reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.nn import functional as F

from .onnx_graph import Array, OnnxGraph

Watch = Callable[[NodeProto, Sequence[Tensor], Sequence[Tensor]], None]
"""Shown every node that was computed, its inputs and its outputs; inputs that a node leaves out are not among them."""

_Attributes = Mapping[str, Any]
_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
_LARGEST_FP8 = 448.0
_SMALL = 1 << 14  # elements


class Evaluator:
    """Runs ``graph`` on the CPU. Values are dropped after their last use, so memory holds a few of a batch.

    A large constant whose array is of another type or order than it is computed with is converted at each use, and not
    kept.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self._nodes = graph.nodes
        self._inputs = [i.name for i in graph.inputs]
        self._outputs = [o.name for o in graph.outputs]
        self._opset = graph.opset
        self._graph = graph
        kept = (name for name, array in graph.constants.items() if _cheap(array, graph.types.get(name)))
        self._constants = {name: constant_tensor(graph, name) for name in kept}
        self._references: dict[int, ReferenceEvaluator] = {}
        last = {name: i for i, node in enumerate(self._nodes) for name in (*node.input, *node.output)}
        self._dead: list[list[str]] = [[] for _ in self._nodes]
        for name, i in last.items():
            if name not in self._outputs:
                self._dead[i].append(name)

    @torch.no_grad()
    def run(self, feeds: Array | Mapping[str, Array], watch: Watch | None = None) -> list[Array]:
        """The graph's outputs, in their order, for its inputs by name; an array alone is the only input."""
        given = feeds if isinstance(feeds, Mapping) else {self._inputs[0]: feeds}
        values = {name: as_tensor(given[name]) for name in self._inputs}
        for i, node in enumerate(self._nodes):
            inputs = [values[n] if n in values else self._constant(n) for n in node.input if n]
            outputs = self._compute(i, node, inputs)
            if watch is not None:
                watch(node, inputs, outputs)
            values.update(zip(node.output, outputs, strict=True))
            for name in self._dead[i]:
                values.pop(name, None)
        return [values[name].numpy() for name in self._outputs]

    def _constant(self, name: str) -> Tensor:
        kept = self._constants.get(name)
        return constant_tensor(self._graph, name) if kept is None else kept

    def _compute(self, i: int, node: NodeProto, inputs: Sequence[Tensor]) -> list[Tensor]:
        if node.op_type in _CONVERSIONS:
            return [_CONVERSIONS[node.op_type](inputs, _attributes(node))]
        if (node.op_type in _ARITHMETIC and inputs[0].is_floating_point()) and (
            node.op_type != "Resize" or _repeats(node, inputs)
        ):
            return [arithmetic(node, inputs).to(inputs[0].dtype)]
        feeds = {n: x.numpy() for n, x in zip((n for n in node.input if n), inputs, strict=True)}
        if i not in self._references:  # a function of one node, because a bare one is taken to be of the newest opset
            opset = helper.make_opsetid("", self._opset)
            proto = helper.make_function("declip", "node", [*feeds], [*node.output], [node], [opset])
            self._references[i] = ReferenceEvaluator(proto)
        return [as_tensor(array) for array in self._references[i].run(None, feeds, attributes={})]


def arithmetic(node: NodeProto, inputs: Sequence[Tensor]) -> Tensor:
    """What ``node``, a product or another operator that torch computes, makes of ``inputs``: FP32, not rounded."""
    return _ARITHMETIC[node.op_type]([x.float() for x in inputs], _attributes(node))


def _cheap(array: Array, declared: int | None) -> bool:
    """Whether a constant takes no further memory worth speaking of as a tensor."""
    return array.size < _SMALL or (declared is None and array.flags.writeable and array.flags.c_contiguous)


def constant_tensor(graph: OnnxGraph, name: str) -> Tensor:
    """A constant of ``graph`` in its declared type."""
    declared = graph.types.get(name)
    tensor = as_tensor(graph.constants[name])
    return tensor if declared is None else tensor.to(_TYPES[declared])


def as_tensor(array: Array) -> Tensor:
    """``array`` as a tensor, sharing memory where numpy allows writing to it; FP8 keeps its type."""
    array = np.asarray(array, order="C")
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN):
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _gemm(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    left, right = (m.t() if a.get(flag) else m for m, flag in zip(x, ("transA", "transB"), strict=False))
    product: Tensor = a.get("alpha", 1.0) * (left @ right)
    return product if len(x) == 2 else product + a.get("beta", 1.0) * x[2]


def _padded(x: Tensor, a: _Attributes, value: float) -> Tensor:
    axes = x.ndim - 2
    pads = a.get("pads", [0] * 2 * axes)
    # ONNX gives all beginnings, then all ends; torch a pair an axis, the last axis first.
    pairs = [side for axis in reversed(range(axes)) for side in (pads[axis], pads[axes + axis])]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def _conv(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    bias = x[2] if len(x) > 2 else None
    strides, dilations = (tuple(a.get(n, [1] * (x[0].ndim - 2))) for n in ("strides", "dilations"))
    return torch.convolution(
        _padded(x[0], a, 0.0), x[1], bias, strides, [0] * len(strides), dilations, False, [0], a.get("group", 1)
    )


def _max_pool(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    pooled: Tensor = F.max_pool2d(
        _padded(x[0], a, -torch.inf), a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode"))
    )
    return pooled


def _average_pool(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    def pool(values: Tensor) -> Tensor:
        return F.avg_pool2d(
            _padded(values, a, 0.0), a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode"))
        )

    if a.get("count_include_pad"):
        return pool(x[0])
    return pool(x[0]) / pool(torch.ones_like(x[0][:1, :1]))


def _instance_norm(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    return F.instance_norm(x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5))


def _resize(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    """Enlarging each pixel to as many as the scales say; other resizing stays with onnx's reference."""
    resized = x[0]
    for axis, scale in enumerate(x[-1].tolist()):
        resized = resized if scale == 1 else resized.repeat_interleave(int(scale), axis)
    return resized


def _repeats(node: NodeProto, inputs: Sequence[Tensor]) -> bool:
    """Whether a Resize only repeats pixels a whole number of times."""
    a = _attributes(node)
    return (
        len(node.input) == 3  # no sizes
        and a.get("mode", b"nearest") == b"nearest"
        and a.get("coordinate_transformation_mode") == b"asymmetric"
        and a.get("nearest_mode") == b"floor"
        and all(scale >= 1 and scale == int(scale) for scale in inputs[-1].tolist())
    )


def _layer_norm(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    shape = x[0].shape[a.get("axis", -1) :]
    return F.layer_norm(x[0], shape, x[1], x[2] if len(x) > 2 else None, a.get("epsilon", 1e-5))


_ARITHMETIC: dict[str, Callable[[Sequence[Tensor], _Attributes], Tensor]] = {
    "Add": lambda x, _: x[0] + x[1],
    "Sub": lambda x, _: x[0] - x[1],
    "Mul": lambda x, _: x[0] * x[1],
    "Div": lambda x, _: x[0] / x[1],
    "Relu": lambda x, _: x[0].relu(),
    "Sigmoid": lambda x, _: x[0].sigmoid(),
    "Tanh": lambda x, _: x[0].tanh(),
    "Erf": lambda x, _: x[0].erf(),
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "MatMul": lambda x, _: x[0] @ x[1],
    "Gemm": _gemm,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "Resize": _resize,
}


def _quantize(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    scaled = x[0].float() / _along(x[1], x[0], a).float()
    if x[2].dtype == torch.float8_e4m3fn:
        return scaled.clamp(-_LARGEST_FP8, _LARGEST_FP8).to(x[2].dtype)
    limits = torch.iinfo(x[2].dtype)
    return (scaled.round() + _along(x[2], x[0], a)).clamp(limits.min, limits.max).to(x[2].dtype)


def _dequantize(x: Sequence[Tensor], a: _Attributes) -> Tensor:
    zero = 0.0 if len(x) < 3 else _along(x[2], x[0], a).float()
    return ((x[0].float() - zero) * _along(x[1], x[0], a).float()).to(x[1].dtype)


def _along(parameter: Tensor, x: Tensor, a: _Attributes) -> Tensor:
    """A scale or zero of one value a channel, in the shape that multiplies ``x``."""
    if parameter.ndim == 0:
        return parameter
    shape = [1] * x.ndim
    shape[a.get("axis", 1)] = -1
    return parameter.view(shape)


_CONVERSIONS: dict[str, Callable[[Sequence[Tensor], _Attributes], Tensor]] = {
    "Cast": lambda x, a: x[0].to(_TYPES[a["to"]]),
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
