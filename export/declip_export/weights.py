"""The engine's ``weights.bin``, and graph heads that refer to it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from declip_runtime.version import __version__

from .onnx_graph import QUANTIZING, Array, OnnxGraph

WEIGHTS = "weights.bin"
ALIGNMENT = 64  # a cache line, and the widest vector load
INLINE_BELOW = 256  # elements; smaller constants stand in the head
IR_VERSION = 10

StorageDtype = Literal["float16", "float32"]


class WeightStore:
    """Writes ``weights.bin``, equal constants once, however many graphs refer to them.

    FP32 constants are stored in FP16 where that loses nothing, which is the case for weights that were rounded
    before; text embeddings and the like keep FP32. A context manager.
    """

    def __init__(self, path: Path, storage: StorageDtype) -> None:
        self.path, self.storage = path, storage
        self._file = path.open("wb")
        self._places: dict[tuple[str, bytes], tuple[np.dtype[np.generic], int, int]] = {}

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def place(self, array: Array) -> tuple[np.dtype[np.generic], int, int]:
        """Dtype as stored, offset and length in bytes; written when these values are seen for the first time."""
        return self.place_as_is(self._stored(array))

    def place_as_is(self, array: Array) -> tuple[np.dtype[np.generic], int, int]:
        """The same, in the array's own type."""
        stored = np.asarray(array, order="C")
        data = stored.reshape(-1).view(np.uint8).data  # of FP8, too, which gives no buffer itself
        key = (str(stored.dtype), hashlib.sha256(data).digest())
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            self._places[key] = (stored.dtype, self._file.tell(), stored.nbytes)
            self._file.write(data)
        return self._places[key]

    def _stored(self, array: Array) -> Array:
        if self.storage == "float32" or array.dtype != np.float32:
            return array
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return half if np.array_equal(half, array) else array


def head(graph: OnnxGraph, store: WeightStore) -> bytes:
    """Serialized ModelProto of ``graph`` with its large constants in ``store``; small ones inline.

    A constant that is stored in another floating type than its consumers compute in is followed by one Cast; scales
    of Q/DQ never are, since every runtime wants to see them as constants.
    """
    scales = {name for node in graph.nodes if node.op_type in QUANTIZING for name in node.input[1:]}
    initializers: list[TensorProto] = []
    casts: list[NodeProto] = []
    for name, array in graph.constants.items():
        wanted = graph.types.get(name, helper.np_dtype_to_tensor_dtype(array.dtype))
        typed = helper.tensor_dtype_to_np_dtype(wanted)
        if array.size < INLINE_BELOW:
            initializers.append(numpy_helper.from_array(np.asarray(array.astype(typed), order="C"), name))
            continue
        dtype, offset, length = store.place_as_is(array.astype(typed)) if name in scales else store.place(array)
        stored = helper.np_dtype_to_tensor_dtype(dtype)
        external = name if stored == wanted else f"{name}.stored"
        if stored != wanted:
            casts.append(helper.make_node("Cast", [external], [name], f"{name}.cast", to=wanted))
        initializers.append(_external(external, stored, array.shape, offset, length))
    proto = helper.make_graph([*casts, *graph.nodes], "declip", graph.inputs, graph.outputs, initializers)
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=IR_VERSION,
        producer_name="declip-sdk",
        producer_version=__version__,
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _external(name: str, dtype: int, shape: tuple[int, ...], offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
