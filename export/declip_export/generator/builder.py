"""Building an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from declip_export.onnx_graph import Array, OnnxGraph
from declip_runtime.signature import TensorSpec

TYPES = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


@dataclass(frozen=True)
class Value:
    """A value of the graph: its name, ONNX element type and number of axes."""

    name: str
    type: int
    rank: int


class Builder:
    """Collects nodes and constants. The same node asked for twice is made once."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._types: dict[str, int] = {}
        self._inputs: list[ValueInfoProto] = []
        self._made: dict[tuple[Any, ...], Value] = {}

    def input(self, name: str, spec: TensorSpec) -> Value:
        """An input of the graph; its free sizes keep their names."""
        self._inputs.append(helper.make_tensor_value_info(name, TYPES[spec.dtype], list(spec.shape)))
        self._types[name] = TYPES[spec.dtype]
        return Value(name, TYPES[spec.dtype], len(spec.shape))

    def constant(self, name: str, array: Array, declared: int | None = None) -> Value:
        """A constant by name, ``declared`` in another type than its array's where that is given."""
        self._constants[name] = array
        if declared is not None:
            self._types[name] = declared
        found = helper.np_dtype_to_tensor_dtype(array.dtype) if declared is None else declared
        return Value(name, int(found), array.ndim)

    def literal(self, values: float | Sequence[int] | Sequence[float], dtype: str) -> Value:
        """A small constant, named after its values."""
        array = np.asarray(values, dtype)
        shown = "_".join(map(str, array.reshape(-1).tolist()))
        return self.constant(f"{dtype}.{array.ndim}d.{shown}", array)

    def node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        name: str,
        *,
        rank: int | None = None,
        result: int | None = None,
        **attributes: Any,
    ) -> Value:
        """The result, called ``name``, of one node; None leaves out an optional input.

        Rank and type are those of the first input unless given.
        """
        first = next(value for value in inputs if value is not None)
        names = ["" if value is None else value.name for value in inputs]
        key = (operator, *names, *sorted((k, str(v)) for k, v in attributes.items()))
        if key not in self._made:
            value = Value(name, first.type if result is None else result, first.rank if rank is None else rank)
            self._types[name] = value.type
            self._nodes.append(helper.make_node(operator, names, [name], name, **attributes))
            self._made[key] = value
        return self._made[key]

    def finish(self, outputs: Mapping[str, tuple[Value, TensorSpec]], opset: int) -> OnnxGraph:
        """The graph that gives ``outputs``, without what they do not need."""
        renamed: dict[str, str] = {}
        for name, (value, _) in outputs.items():
            self._types[name] = value.type
            if value.name in renamed or value.name in self._constants or value.name in {i.name for i in self._inputs}:
                self._nodes.append(helper.make_node("Identity", [value.name], [name], name))
            else:
                renamed[value.name] = name
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        infos = [
            helper.make_tensor_value_info(name, TYPES[spec.dtype], list(spec.shape))
            for name, (_, spec) in outputs.items()
        ]
        graph = OnnxGraph(self._nodes, self._constants, self._inputs, infos, (), self._types, opset)
        graph.prune()
        return graph
