"""The runtime's own ONNX walker against the onnx package, on heads as the package writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from declip_runtime.errors import EngineCorruptError
from declip_runtime.onnx_head import relocate, tensors

DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8, "uint8": np.uint8}


def model(folder: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """A model with one external tensor of each type, an inline one, and a subgraph with one of its own."""
    rng = np.random.default_rng(0)
    arrays = {f"w_{name}": rng.integers(0, 100, (3, 4, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    initializers = [numpy_helper.from_array(a, name) for name, a in arrays.items()]
    initializers.append(numpy_helper.from_array(np.arange(3.0), "inline"))
    offset = 0
    with (folder / "weights.bin").open("wb") as file:
        for tensor in initializers[:-1]:
            data = tensor.raw_data
            file.write(data)
            set_external_data(tensor, "weights.bin", offset=offset, length=len(data))
            tensor.ClearField("raw_data")
            offset += len(data)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inline"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.DOUBLE, [3])],
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [3])],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], doc_string="ä" * 300)
    helper.set_model_props(made, {"key": "value"})
    return made, arrays


def test_what_is_listed_is_what_onnx_sees(tmp_path: Path) -> None:
    made, arrays = model(tmp_path)
    listed = tensors(made.SerializeToString())
    assert [t.name for t in listed] == list(arrays)
    data = (tmp_path / "weights.bin").read_bytes()
    for tensor in listed:
        read = np.frombuffer(data[tensor.offset : tensor.offset + tensor.length], DTYPES[tensor.dtype])
        np.testing.assert_array_equal(read.reshape(tensor.dims), arrays[tensor.name])


def test_onnx_reads_the_same_weights_from_the_new_place(tmp_path: Path) -> None:
    made, arrays = model(tmp_path)
    (tmp_path / "container.engine").write_bytes(bytes(4096) + (tmp_path / "weights.bin").read_bytes())
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "moved.onnx").write_bytes(relocate(made.SerializeToString(), "container.engine", 4096))
    moved = onnx.load(tmp_path / "moved.onnx")
    onnx.checker.check_model(moved)
    for tensor in moved.graph.initializer:
        if tensor.name in arrays:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])


def test_nothing_but_place_and_offset_changes(tmp_path: Path) -> None:
    made, _ = model(tmp_path)
    moved = onnx.ModelProto.FromString(relocate(made.SerializeToString(), "elsewhere", 7))
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights.bin"
            if entry.key == "offset":
                entry.value = str(int(entry.value) - 7)
    assert moved == made


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        relocate(data, "x", 1)
        tensors(data)
    except EngineCorruptError as error:
        assert "not readable ONNX" in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes(model(tmp_path_factory.mktemp("head"))[0].SerializeToString())


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_head_is_read_or_refused(head: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(head) - 1))
    damaged = head[:at] + bytes([data.draw(st.integers(0, 255))]) + head[at + data.draw(st.integers(0, 3)) :]
    try:
        tensors(relocate(damaged, "x", 1))
    except EngineCorruptError as error:
        assert "not readable ONNX" in str(error)  # noqa: PT017
