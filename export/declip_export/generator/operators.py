"""Operators of torch in ONNX: tables of what makes the nodes of one operation each.

Every function takes the emission, the name of the result, and torch's arguments.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from onnx import TensorProto
from torch.nn import functional as F

from declip_runtime.errors import ExportError

from .builder import Builder, Value

_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64
_END = 2**63 - 1  # of an axis, in ONNX


class Emission(Protocol):
    """What the functions here need of whoever walks through a module."""

    builder: Builder

    def tensor(self, name: str, shape: tuple[int, ...] | None = None, *, transposed: bool = False) -> Value:
        """A parameter or buffer of the module by its path."""


@dataclass(frozen=True)
class Size:
    """The size of one axis of a value, known when the graph runs."""

    of: Value
    axis: int


def _value(e: Emission, x: Any) -> Value:
    return x if isinstance(x, Value) else e.builder.literal(float(x), "float32")


def _binary(kind: str) -> Callable[..., Value]:
    def emit_binary(e: Emission, name: str, left: Any, right: Any) -> Value:
        a, b = _value(e, left), _value(e, right)
        return e.builder.node(kind, [a, b], name, rank=max(a.rank, b.rank))

    return emit_binary


def _unary(kind: str) -> Callable[..., Value]:
    return lambda e, name, x: e.builder.node(kind, [x], name)


def silu(e: Emission, name: str, x: Value, inplace: bool = False) -> Value:
    """x sigmoid(x)."""
    return e.builder.node("Mul", [x, e.builder.node("Sigmoid", [x], f"{name}/sigmoid")], name)


def gelu(e: Emission, name: str, x: Value, approximate: str = "none") -> Value:
    """The exact form as runtimes recognise it, or the one by a hyperbolic tangent."""
    b = e.builder
    if approximate == "none":
        curve = b.node(
            "Erf", [b.node("Div", [x, b.literal(math.sqrt(2), "float32")], f"{name}/scaled")], f"{name}/curve"
        )
    else:  # tanh of sqrt(2 / pi) (x + 0.044715 x^3)
        square = b.node("Mul", [x, x], f"{name}/square")
        inner = b.node("Mul", [square, b.literal(0.044715, "float32")], f"{name}/small")
        inner = b.node("Mul", [b.node("Add", [inner, b.literal(1.0, "float32")], f"{name}/grown"), x], f"{name}/cubic")
        inner = b.node("Mul", [inner, b.literal(math.sqrt(2 / math.pi), "float32")], f"{name}/scaled")
        curve = b.node("Tanh", [inner], f"{name}/curve")
    shifted = b.node("Add", [curve, b.literal(1.0, "float32")], f"{name}/shifted")
    return b.node("Mul", [b.node("Mul", [x, shifted], f"{name}/double"), b.literal(0.5, "float32")], name)


def _softmax(e: Emission, name: str, x: Value, dim: int) -> Value:
    return e.builder.node("Softmax", [x], name, axis=dim)


def _cat(e: Emission, name: str, values: Sequence[Value], dim: int = 0) -> Value:
    return e.builder.node("Concat", values, name, axis=dim)


def _transpose(e: Emission, name: str, x: Value, first: int, second: int) -> Value:
    axes = [*range(x.rank)]
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(e, name, x, *axes)


def _permute(e: Emission, name: str, x: Value, *axes: int) -> Value:
    return e.builder.node("Transpose", [x], name, perm=list(axes))


def _unsqueeze(e: Emission, name: str, x: Value, *axes: int) -> Value:
    return e.builder.node("Unsqueeze", [x, e.builder.literal(axes, "int64")], name, rank=x.rank + len(axes))


def _reshape(e: Emission, name: str, x: Value, *sizes: int | Size) -> Value:
    """An axis that keeps its place keeps its size by ONNX's 0; sizes of other values are taken from them."""
    parts: list[list[int | Size]] = []
    for i, size in enumerate(sizes):
        plain = 0 if isinstance(size, Size) and size == Size(x, i) else size
        last = parts[-1][-1] if parts else None
        if isinstance(plain, Size):
            follows = isinstance(last, Size) and last.of == plain.of and last.axis + 1 == plain.axis
        else:
            follows = isinstance(last, int)
        if follows:
            parts[-1].append(plain)
        else:
            parts.append([plain])
    pieces = [_piece(e, part) for part in parts]
    shape = pieces[0] if len(pieces) == 1 else e.builder.node("Concat", pieces, f"{name}/shape", axis=0)
    return e.builder.node("Reshape", [x, shape], name, rank=len(sizes))


def _piece(e: Emission, part: Sequence[int | Size]) -> Value:
    first = part[0]
    if not isinstance(first, Size):
        return e.builder.literal([size for size in part if isinstance(size, int)], "int64")
    end = first.axis + len(part)
    name = f"{first.of.name}/sizes_{first.axis}_{end}"
    return e.builder.node("Shape", [first.of], name, rank=1, result=_INT, start=first.axis, end=end)


def _attribute(e: Emission, name: str, x: Value, attribute: str) -> tuple[Size, ...]:
    if attribute != "shape":
        raise ExportError(f"the model asks for {attribute} of a value, which cannot be exported. Give another one.")
    return tuple(Size(x, axis) for axis in range(x.rank))


def _getitem(e: Emission, name: str, x: Any, index: Any) -> Any:
    if isinstance(x, tuple):
        return x[index]
    return _picked(e, name, x, index if isinstance(index, tuple) else (index,))


def _picked(e: Emission, name: str, x: Value, index: tuple[Any, ...]) -> Value:
    """Of x[index]: whole axes with new ones, or one axis of which a single index or a part is taken."""
    b = e.builder
    if all(i is None or i == slice(None) for i in index):
        return _unsqueeze(e, name, x, *(axis for axis, i in enumerate(index) if i is None))
    taken = [(axis, i) for axis, i in enumerate(index) if i != slice(None)]
    if len(taken) == 1 and isinstance(taken[0][1], int):
        axis, number = taken[0]
        return b.node("Gather", [x, b.literal(number, "int64")], name, rank=x.rank - 1, axis=axis)
    if len(taken) == 1 and isinstance(taken[0][1], slice) and taken[0][1].step is None:
        axis, part = taken[0]
        limits = (part.start or 0, _END if part.stop is None else part.stop, axis)
        return b.node("Slice", [x, *(b.literal([limit], "int64") for limit in limits)], name)
    raise ExportError(f"the model picks {index} of a value, which cannot be exported. Give another one.")


def _interpolate(e: Emission, name: str, x: Value, *, scale_factor: float, mode: str, **other: Any) -> Value:
    if mode != "nearest" or any(other.values()):
        raise ExportError(f"the model enlarges by {mode}, {other}, which cannot be exported. Give another base model.")
    scales = e.builder.literal([1.0] * 2 + [scale_factor] * (x.rank - 2), "float32")
    return e.builder.node(
        "Resize", [x, None, scales], name, mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )  # fmt: skip


def _pad(e: Emission, name: str, x: Value, sides: Sequence[int], mode: str = "constant", value: Any = None) -> Value:
    """torch gives pairs, the last axis first; ONNX takes all beginnings, then all ends."""
    if mode != "constant" or value:
        raise ExportError(f"the model pads with {mode} {value}, which cannot be exported. Give another base model.")
    pairs = [*reversed([sides[i : i + 2] for i in range(0, len(sides), 2)])]
    before, after = ([0] * (x.rank - len(pairs)) + [pair[end] for pair in pairs] for end in (0, 1))
    return e.builder.node("Pad", [x, e.builder.literal([*before, *after], "int64")], name, mode="constant")


def _embedding(e: Emission, name: str, ids: Value, table: Value, **of_training: Any) -> Value:
    return e.builder.node("Gather", [table, ids], name, rank=ids.rank + 1, axis=0)


def _clamp(e: Emission, name: str, x: Value, low: float, high: float) -> Value:
    return e.builder.node("Clip", [x, *(e.builder.literal(float(v), "float32") for v in (low, high))], name)


def _largest(e: Emission, name: str, x: Value, *, dim: int, keepdim: bool) -> Value:
    axes = e.builder.literal([dim], "int64")
    return e.builder.node("ReduceMax", [x, axes], name, rank=x.rank if keepdim else x.rank - 1, keepdims=int(keepdim))


def _mean(e: Emission, name: str, x: Value, dim: int) -> Value:
    return e.builder.node("ReduceMean", [x, e.builder.literal([dim], "int64")], name, rank=x.rank - 1, keepdims=0)


def _equal(e: Emission, name: str, left: Value, right: Value | int) -> Value:
    other = right if isinstance(right, Value) else e.builder.literal(right, "int64")
    return e.builder.node("Equal", [left, other], name, result=TensorProto.BOOL)


def _remainder(e: Emission, name: str, x: Value, divisor: float) -> Value:
    return e.builder.node("Mod", [x, _value(e, divisor)], name, fmod=1)


def _long(e: Emission, name: str, x: Value) -> Value:
    return e.builder.node("Cast", [x], name, result=_INT, to=_INT)


def _float(e: Emission, name: str, x: Value) -> Value:
    return e.builder.node("Cast", [x], name, result=_FLOAT, to=_FLOAT)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: _binary("Add"),
    operator.sub: _binary("Sub"),
    operator.mul: _binary("Mul"),
    operator.truediv: _binary("Div"),
    operator.eq: _equal,
    operator.getitem: _getitem,
    getattr: _attribute,
    torch.matmul: _binary("MatMul"),
    torch.softmax: _softmax,
    torch.cat: _cat,
    torch.sin: _unary("Sin"),
    torch.cos: _unary("Cos"),
    torch.round: _unary("Round"),
    torch.fmod: _remainder,
    torch.relu: _unary("Relu"),
    torch.sigmoid: _unary("Sigmoid"),
    F.silu: silu,
    F.gelu: gelu,
    F.interpolate: _interpolate,
    F.pad: _pad,
    F.embedding: _embedding,
}
METHODS: dict[str, Callable[..., Any]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": lambda e, name, x, axis: _unsqueeze(e, name, x, axis),
    "clamp": _clamp,
    "clone": _unary("Identity"),
    "mean": _mean,
    "amax": _largest,
    "float": _float,
    "long": _long,
}
