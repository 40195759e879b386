"""From the modules of this package to ONNX, by torch.fx and a table of operators.

torch's own exporter takes half a minute for a UNet of free sizes, most of it for proofs about sizes, and needs weights
in memory once more. The modules here are written in few operators, each of which has one obvious form in ONNX; tracing
them with fx takes a second at any size, and the graph's constants are the modules' own tensors by name. FP16 weights
stay FP16: the graph computes in FP32 all the same, as its constants are declared FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx import TensorProto
from torch import Tensor, fx, nn

from declip_export.onnx_graph import OPSET, OnnxGraph
from declip_export.weights import StorageDtype
from declip_runtime.errors import ExportError
from declip_runtime.signature import TensorSpec

from .builder import Builder, Value
from .layer_operators import LAYERS
from .library import reason
from .operators import FUNCTIONS, METHODS


def emit(
    module: nn.Module, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], storage: StorageDtype
) -> OnnxGraph:
    """``module`` as a graph in FP32, whose constants are its parameters, rounded to FP16 where ``storage`` asks for it.

    ``inputs`` are the arguments of the module by name. Raises ExportError for an operation that is not in the table,
    and for parameters that FP16 cannot hold.
    """
    emission = _Emission(module, storage)
    given = {name: emission.builder.input(name, spec) for name, spec in inputs.items()}
    try:
        traced = _Tracer().trace(module)
    except fx.proxy.TraceError as error:
        raise ExportError(
            f"{type(module).__name__} cannot be traced: {reason(error)}. Give another base model."
        ) from error
    result = emission.run(traced, given)
    values = result if isinstance(result, tuple) else (result,)
    return emission.builder.finish(
        {name: (value, spec) for (name, spec), value in zip(outputs.items(), values, strict=True)}, OPSET
    )


class _Tracer(fx.Tracer):
    """Looks into everything but the layers in the table."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(LAYERS))


class _Emission:
    """One module's way into a builder."""

    def __init__(self, module: nn.Module, storage: StorageDtype) -> None:
        self.builder = Builder()
        self._module, self._storage = module, storage

    def run(self, graph: fx.Graph, inputs: Mapping[str, Value]) -> Any:
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            args, options = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            if node.op == "placeholder":
                values[node] = inputs[node.target]
            elif node.op == "get_attr":
                values[node] = self.tensor(node.target)
            elif node.op == "output":
                return args[0]
            elif node.op == "call_module":
                layer = self._module.get_submodule(node.target)
                kind = next(kind for kind in LAYERS if isinstance(layer, kind))
                values[node] = LAYERS[kind](self, node.name, layer, node.target, *args)
            else:
                table = METHODS if node.op == "call_method" else FUNCTIONS
                values[node] = self._entry(table, node.target)(self, node.name, *args, **options)
        raise ExportError("the model gives nothing. Give another one.")

    def tensor(self, name: str, shape: tuple[int, ...] | None = None, *, transposed: bool = False) -> Value:
        """A parameter or buffer of the module; buffers, which are no weights, are never rounded."""
        owner, _, last = name.rpartition(".")
        tensor: Tensor = getattr(self._module.get_submodule(owner), last)
        is_weight = isinstance(tensor, nn.Parameter)
        tensor = tensor.detach() if shape is None else tensor.detach().reshape(shape)
        tensor = tensor.t() if transposed else tensor
        if not is_weight:
            return self.builder.constant(name, tensor.numpy())
        if self._storage == "float32":
            return self.builder.constant(name, tensor.float().numpy())
        half = tensor.half()  # the same tensor where it is FP16 already
        if not bool(half.isfinite().all()):
            raise ExportError(f"{name} does not fit FP16. Export with FP32 storage: --weights float32.")
        return self.builder.constant(name, half.numpy(), TensorProto.FLOAT)

    def _entry(self, table: Mapping[Any, Callable[..., Any]], target: Any) -> Callable[..., Any]:
        if target not in table:
            shown = getattr(target, "__name__", str(target))
            raise ExportError(f"the model computes {shown}, which cannot be exported. Give another base model.")
        return table[target]
