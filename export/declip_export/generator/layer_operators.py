"""Layers of torch in ONNX: a table of what makes the nodes of one layer each.

Every function takes the emission, the name of the result, the layer, its path in the module, and its input.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto
from torch import nn

from declip_runtime.errors import ExportError

from .builder import Value
from .operators import Emission, gelu, silu


def _linear(e: Emission, name: str, layer: nn.Linear, path: str, x: Value) -> Value:
    weight = e.tensor(f"{path}.weight", transposed=True)
    if layer.bias is None:
        return e.builder.node("MatMul", [x, weight], name)
    return e.builder.node(
        "Add", [e.builder.node("MatMul", [x, weight], f"{name}/product"), e.tensor(f"{path}.bias")], name
    )


def _conv(e: Emission, name: str, layer: nn.Conv2d, path: str, x: Value) -> Value:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ExportError(f"a convolution pads with {layer.padding_mode}, {layer.padding}. Give another base model.")
    inputs = [x, e.tensor(f"{path}.weight"), None if layer.bias is None else e.tensor(f"{path}.bias")]
    return e.builder.node(
        "Conv", [i for i in inputs if i is not None], name, kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride), pads=list(layer.padding) * 2, dilations=list(layer.dilation), group=layer.groups,
    )  # fmt: skip


def _layer_norm(e: Emission, name: str, layer: nn.LayerNorm, path: str, x: Value) -> Value:
    parts = [e.tensor(f"{path}.{part}") for part in ("weight", "bias") if getattr(layer, part) is not None]
    if len(parts) != 2:
        raise ExportError("a LayerNorm of the model has no weight or no bias. Give another base model.")
    axis = -len(layer.normalized_shape)
    return e.builder.node("LayerNormalization", [x, *parts], name, axis=axis, epsilon=layer.eps)


def _group_norm(e: Emission, name: str, layer: nn.GroupNorm, path: str, x: Value) -> Value:
    """As an instance norm over groups: before opset 21, ONNX's GroupNormalization has a weight a group only."""
    b, groups = e.builder, layer.num_groups
    grouped = b.node("Reshape", [x, b.literal([0, groups, -1], "int64")], f"{name}/grouped", rank=3)
    ones, zeros = (b.constant(f"{value}.{groups}", np.full(groups, value, np.float32)) for value in (1.0, 0.0))
    normed = b.node("InstanceNormalization", [grouped, ones, zeros], f"{name}/normed", epsilon=layer.eps)
    sizes = b.node("Shape", [x], f"{x.name}/sizes", rank=1, result=TensorProto.INT64)
    y = b.node("Reshape", [normed, sizes], f"{name}/shaped", rank=x.rank)
    y = b.node("Mul", [y, e.tensor(f"{path}.weight", (-1, 1, 1))], f"{name}/scaled")
    return b.node("Add", [y, e.tensor(f"{path}.bias", (-1, 1, 1))], name)


LAYERS: dict[type[nn.Module], Callable[..., Value]] = {
    nn.Conv2d: _conv,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Linear: _linear,
    nn.SiLU: lambda e, name, layer, path, x: silu(e, name, x),
    nn.GELU: lambda e, name, layer, path, x: gelu(e, name, x, layer.approximate),
}
