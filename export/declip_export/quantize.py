"""Quantized copies of a graph: explicit QuantizeLinear / DequantizeLinear pairs around a tower's products.

INT8 and FP8 (E4M3) are symmetric throughout, which is what OpenVINO, ONNX Runtime and TensorRT all compute. The inputs
of matrix products and convolutions are quantized; attention's own two products, normalisations, projectors and the
head stay as they are. INT8 weights use half of what their type holds, so that every CPU gives the same scores: those
that know AVX2 but not VNNI add two products of an activation and a weight in 16 bits, which cut full ones off. Scales
are numbers that FP16 has too, so that a graph typed FP32 and one typed FP16 share their quantized weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .onnx_graph import Array, OnnxGraph


@dataclass(frozen=True)
class Format:
    """What values are rounded to, activations up to ``largest`` and weights up to ``largest_weight``.

    INT8 has one scale a tensor for activations and one an output channel for weights. FP8 has one a tensor for both:
    it is itself a floating type. ``operators`` are those that are worth it.
    """

    name: str
    element: int
    largest: float
    largest_weight: float
    floating: bool
    operators: frozenset[str]

    def encode_weight(self, values: Array, scales: Array) -> Array:
        """``values`` / ``scales``, rounded and clipped to this format."""
        scaled = np.clip(values / scales, -self.largest_weight, self.largest_weight)
        rounded = scaled if self.floating else np.round(scaled)
        return rounded.astype(helper.tensor_dtype_to_np_dtype(self.element))


_HALF = 64.0  # 16 bits hold two products of such weights and the largest activation, 255 as those CPUs store it

INT8 = Format("int8", TensorProto.INT8, 127.0, _HALF, False, frozenset({"MatMul", "Gemm", "Conv"}))
FP8 = Format("fp8", TensorProto.FLOAT8E4M3FN, 448.0, 448.0, True, frozenset({"MatMul", "Gemm"}))


def quantized(graph: OnnxGraph, ranges: dict[str, float], form: Format) -> OnnxGraph:
    """``graph`` with the layers in ``ranges`` quantized; their FP32 weights leave it.

    ``ranges`` holds the largest representable input of a layer by the name of its weight.
    """
    result = graph.copy()
    result.nodes = []
    done: dict[tuple[str, float], str] = {}
    for node in graph.copy().nodes:
        weight = node.input[1] if node.op_type in form.operators else ""
        if weight in ranges and ranges[weight] > 0:
            key = (node.input[0], ranges[weight])
            if key not in done:
                done[key] = _quantize_activation(result, *key, form)
            node.input[0] = done[key]
            node.input[1] = _quantize_weight(result, node, form)
        result.nodes.append(node)
    result.prune()
    return result


def _quantize_activation(graph: OnnxGraph, name: str, limit: float, form: Format) -> str:
    rounded, float32 = f"{name}.{form.name}", f"{name}.dequantized"
    scale, zero = _constants(graph, name, np.asarray(limit), form.largest, form)
    graph.nodes += [
        helper.make_node("QuantizeLinear", [name, scale, zero], [rounded], f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [rounded, scale, zero], [float32], f"{name}.dequantize"),
    ]
    graph.types |= {rounded: form.element, float32: TensorProto.FLOAT}
    return float32


def _quantize_weight(graph: OnnxGraph, node: NodeProto, form: Format) -> str:
    name = node.input[1]
    rounded, float32 = f"{name}.{form.name}", f"{name}.dequantized"
    if rounded not in graph.constants:
        array = graph.constants[name]
        axis = None if form.floating else _channel_axis(node)
        others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
        scale, zero = _constants(graph, name, np.abs(array).max(others), form.largest_weight, form)
        scales = graph.constants[scale]
        if axis is not None:
            scales = scales.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        graph.constants[rounded] = form.encode_weight(array, scales)
        along = {} if axis is None else {"axis": axis}
        graph.nodes.append(
            helper.make_node("DequantizeLinear", [rounded, scale, zero], [float32], f"{name}.dequantize", **along)
        )
        graph.types[float32] = TensorProto.FLOAT
    return float32


def _constants(graph: OnnxGraph, name: str, limits: Array, largest: float, form: Format) -> tuple[str, str]:
    """Names of the new constants scale and zero: ``limits``, one value or one a channel, become at most ``largest``."""
    scale, zero = f"{name}.scale", f"{name}.zero"
    exact = np.asarray(limits, np.float64) / largest
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
        half = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)  # rounded up: nothing is clipped
    half = np.maximum(half, np.finfo(np.float16).smallest_subnormal)
    graph.constants[scale] = np.where(np.isfinite(half), half, exact).astype(np.float32)
    graph.constants[zero] = np.zeros(exact.shape, helper.tensor_dtype_to_np_dtype(form.element))
    return scale, zero


def _channel_axis(node: NodeProto) -> int:
    """Where output channels lie in a weight: first in a convolution's and in that of a Gemm with transB."""
    transposed = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1
