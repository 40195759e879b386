"""Every operator and type of every graph against what ONNX-TensorRT says of itself.

``onnx_tensorrt/VERSION.txt`` holds the facts of ``docs/operators.md`` of github.com/onnx/onnx-tensorrt at that version:
opsets, operators, element types. That of 10.1 is older than the oldest that the SDK supports (10.3), that of 10.15
nearly the last before 11; those of 11 could not be had. Whoever adds another version adds its file, and nothing else.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from declip_export.calibrate import calibrate
from declip_export.graph import EngineGraph
from declip_export.onnx_graph import OnnxGraph, trace
from declip_export.precision import to_fp16
from declip_export.quantize import FP8, INT8, quantized
from declip_export.weights import WEIGHTS, WeightStore, head

from .conftest import EACH_FAMILY

VERSIONS = sorted((Path(__file__).parent / "onnx_tensorrt").glob("*.txt"))
GRAPHS = ("fp32", "fp16", "int8", "int8-fp16", "fp8")
WITHOUT_FP8 = {"resnet-attention-pool"}  # no layer of it is worth it
NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
AXES = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1, "Pad": 3, "ReduceMean": 1, "ReduceSum": 1, "ReduceL2": 1}


class Support:
    """One version's facts: the types of each supported operator, and the opsets."""

    def __init__(self, path: Path) -> None:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        (_, first, last), *operators = lines
        self.opsets = range(int(first), int(last) + 1)
        self.types = {name: set(types) for name, *types in operators}


@pytest.fixture(scope="module")
def graphs(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``graphs(family)`` is the family's graph in each precision, with types, as engines hold them."""

    @functools.cache
    def build(family: str) -> dict[str, onnx.ModelProto]:
        model, folder = small(family), tmp_path_factory.mktemp(family)
        engine = EngineGraph(model.declip, model.preprocess, semantic=True).round_weights()
        plain = trace(engine, folder)
        int8 = quantized(plain, calibrate(engine, model.images(8), INT8), INT8)
        typed: dict[str, OnnxGraph] = {"fp32": plain, "fp16": to_fp16(plain), "int8": int8, "int8-fp16": to_fp16(int8)}
        if family not in WITHOUT_FP8:
            typed["fp8"] = to_fp16(quantized(plain, calibrate(engine, model.images(8), FP8), FP8))
        with WeightStore(folder / WEIGHTS, "float16") as store:
            for name, graph in typed.items():
                (folder / f"{name}.onnx").write_bytes(head(graph, store))
        models = {name: onnx.load(str(folder / f"{name}.onnx")) for name in typed}
        return {
            n: onnx.shape_inference.infer_shapes(m, check_type=True, strict_mode=True, data_prop=True)
            for n, m in models.items()
        }

    return build


def test_the_facts_are_read() -> None:
    assert VERSIONS
    for path in VERSIONS:
        support = Support(path)
        assert len(support.types) > 100
        assert {"FP32", "FP16", "INT64"} <= support.types["MatMul"] | support.types["Add"]
        assert "Bernoulli" not in support.types


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("path", VERSIONS, ids=lambda p: p.stem)
def test_operators_types_and_opset(graphs: Any, path: Path, family: str, name: str) -> None:
    if name == "fp8" and family in WITHOUT_FP8:
        return
    support, model = Support(path), graphs(family)[name]
    assert {o.domain for o in model.opset_import} == {""}
    assert model.opset_import[0].version in support.opsets
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        assert node.op_type in support.types, f"{node.op_type} is not supported"
        # What Q/DQ read is told by their input, what they give by the other one's.
        told = [node.input[0], *([] if node.op_type.endswith("Linear") else node.output)]
        used = {NAMES[types[value]] for value in told}  # type: ignore[index]
        assert used <= support.types[node.op_type], f"{node.op_type} with {used}"


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_restrictions(graphs: Any, family: str, name: str) -> None:
    """Those that the document states for our operators, and that UINT8 is the network's input only."""
    if name == "fp8" and family in WITHOUT_FP8:
        return
    graph = graphs(family)[name].graph
    constants = {t.name: t for t in graph.initializer}
    uint8 = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.UINT8}
    assert not uint8
    assert [n.op_type for n in graph.node if "images" in n.input] == ["Cast"]
    for node in graph.node:
        if node.op_type in AXES and len(node.input) > AXES[node.op_type]:
            assert node.input[AXES[node.op_type]] in constants
        if node.op_type in ("LayerNormalization", "MaxPool"):
            assert len(node.output) == 1
        if node.op_type in ("MaxPool", "AveragePool"):
            assert all(set(a.ints) == {1} for a in node.attribute if a.name == "dilations")
        if node.op_type.endswith("Linear"):
            assert not numpy_helper.to_array(constants[node.input[2]]).astype(float).any()
            assert node.input[1] in constants
