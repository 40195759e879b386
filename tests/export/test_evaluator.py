"""The evaluator against ONNX Runtime in FP32, and against onnx's own reference where types are narrower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from declip_export.evaluator import Evaluator
from declip_export.onnx_graph import OnnxGraph, parse
from declip_export.photos import sample_images

from .conftest import FAMILIES

RNG = np.random.default_rng(0)


def one_node(kind: str, shape: list[int], constants: list[Any], **attributes: Any) -> onnx.ModelProto:
    """uint8 ``images`` -> Cast -> (x - 100) / 50 -> the node -> ``y``, in FP32."""
    names = [f"c{i}" for i in range(len(constants))]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "centre"], ["centred"]),
        helper.make_node("Div", ["centred", "spread"], ["x"]),
        helper.make_node(kind, ["x", *names], ["y"], **attributes),
    ]
    arrays = {"centre": np.float32(100), "spread": np.float32(50), **dict(zip(names, constants, strict=True))}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def evaluate(model: onnx.ModelProto, images: Any, folder: Path = Path()) -> list[Any]:
    return Evaluator(parse(model, folder)).run(images)


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


NODES: dict[str, tuple[str, list[int], list[Any], dict[str, Any]]] = {
    "matmul": ("MatMul", [2, 3, 5], [floats(5, 4)], {}),
    "gemm": ("Gemm", [3, 5], [floats(4, 5), floats(4)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "gemm-transposed": ("Gemm", [5, 3], [floats(5, 4)], {"transA": 1}),
    "conv": ("Conv", [1, 4, 7, 8], [floats(6, 2, 3, 3), floats(6)], {"group": 2, "strides": [2, 1]}),
    "conv-padded": ("Conv", [1, 2, 7, 8], [floats(3, 2, 3, 2)], {"pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    "max": ("MaxPool", [1, 2, 7, 8], [], {"kernel_shape": [3, 3], "pads": [1, 0, 0, 2], "strides": [2, 2]}),
    "max-up": ("MaxPool", [1, 2, 7, 8], [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "mean": ("AveragePool", [1, 2, 7, 8], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "mean-all": ("AveragePool", [1, 2, 7, 8], [], {"kernel_shape": [3, 2], "pads": [1] * 4, "count_include_pad": 1}),
    "norm": ("LayerNormalization", [2, 3, 5], [floats(5), floats(5)], {"epsilon": 1e-3}),
    "norm-two-axes": ("LayerNormalization", [2, 3, 5], [floats(3, 5)], {"axis": 1}),
    "softmax": ("Softmax", [2, 3, 5], [], {"axis": 1}),
    "reference": ("HardSwish", [2, 3, 5], [], {}),
    "reference-gap": ("Clip", [2, 3, 5], [np.float32(-0.5), np.float32(0.5)], {}),
}


@pytest.mark.parametrize("name", NODES)
def test_one_node_as_onnx_runtime_computes_it(name: str) -> None:
    kind, shape, constants, attributes = NODES[name]
    model = one_node(kind, shape, constants, **attributes)
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        evaluate(model, images)[0], session.run(None, {"images": images})[0], rtol=1e-5, atol=1e-5
    )


def test_an_input_left_out_in_the_middle() -> None:
    model = one_node("Clip", [2, 5], [np.float32(0.5)])
    model.graph.node[-1].input[:] = ["x", "", "c0"]
    images = RNG.integers(0, 256, (2, 5), dtype=np.uint8)
    wanted = np.minimum((images.astype(np.float32) - 100) / 50, 0.5)
    np.testing.assert_allclose(evaluate(model, images)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_graphs_as_onnx_runtime_computes_them(exported: Any, family: str, tmp_path: Path) -> None:
    engine = exported(family)
    engine.unpack(tmp_path / "files")
    path = tmp_path / "files" / "fp32.onnx"
    images = sample_images(engine.manifest.preprocess.size, 4)
    wanted = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": images})
    found = evaluate(onnx.load(str(path), load_external_data=False), images, path.parent)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_an_fp16_graph_as_the_reference_computes_it(exported: Any, tmp_path: Path) -> None:
    """Rounded node by node, in numpy: what ONNX Runtime's CPU provider does not do."""
    engine = exported("vit")
    engine.unpack(tmp_path / "files")
    path = tmp_path / "files" / "fp16.onnx"
    images = sample_images(engine.manifest.preprocess.size, 6)
    wanted = ReferenceEvaluator(str(path)).run(None, {"images": images})
    found = evaluate(onnx.load(str(path), load_external_data=False), images, path.parent)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def typed(nodes: list[Any], constants: dict[str, Any], shape: list[Any], output: int) -> OnnxGraph:
    return OnnxGraph(
        nodes,
        constants,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", output, None)],
        (),
        opset=19,
    )


def test_fp16_overflows_and_underflows_where_a_gpu_does() -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Div", ["product", "factor"], ["y"]),
    ]
    images = np.array([[1, 200]], np.uint8)
    for factor, wanted in ((400.0, [1, np.inf]), (2.0**-24, [1, 200]), (2.0**-25, [np.nan, np.nan])):
        graph = typed(nodes, {"factor": np.float16(factor)}, [1, 2], TensorProto.FLOAT16)
        (found,) = Evaluator(graph).run(images)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found[0], np.array(wanted, np.float16))


def test_sums_inside_a_product_are_fp32() -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = typed(nodes, {"w": np.array([[400], [400], [-400]], np.float16)}, [1, 3], TensorProto.FLOAT16)
    (found,) = Evaluator(graph).run(np.array([[200, 200, 250]], np.uint8))
    assert found[0, 0] == 60000.0, "though 160,000 is passed on the way"


@pytest.mark.parametrize("element", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
@pytest.mark.parametrize("scales", [np.float16(0.7), np.array([0.25, 0.01], np.float16)])
def test_quantization_as_the_reference_computes_it(element: int, scales: Any) -> None:
    form = helper.tensor_dtype_to_np_dtype(element)
    constants = {"scale": scales, "zero": np.zeros(scales.shape, form), "centre": np.float16(128)}
    along = {"axis": 1} if scales.shape else {}
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT16),
        helper.make_node("Sub", ["pixels", "centre"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **along),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **along),
    ]
    graph = typed(nodes, constants, ["n", 2], TensorProto.FLOAT16)
    images = np.arange(256, dtype=np.uint8).reshape(-1, 2)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            graph.inputs,
            graph.outputs,
            [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
    )
    (found,), (wanted,) = Evaluator(graph).run(images), ReferenceEvaluator(model).run(None, {"images": images})
    assert found.dtype == wanted.dtype == np.float16
    close = np.isclose(found.astype(np.float32), wanted.astype(np.float32), rtol=1e-3)
    assert close.mean() > 0.95, (
        "the reference divides in FP16, and so rounds a value at the edge of two steps elsewhere"
    )
    limit = 448 if element == TensorProto.FLOAT8E4M3FN else 128
    assert (np.abs(found.astype(np.float32)) <= limit * scales.astype(np.float32) * 1.001).all()


def test_everything_that_was_computed_can_be_watched() -> None:
    model = one_node("MatMul", [2, 3], [floats(3, 4)])
    seen: list[tuple[str, list[Any], list[Any]]] = []
    graph = parse(model, Path())
    Evaluator(graph).run(
        np.zeros((2, 3), np.uint8),
        lambda node, x, y: seen.append((node.op_type, [list(v.shape) for v in x], [list(v.shape) for v in y])),
    )
    assert [kind for kind, *_ in seen] == ["Cast", "Sub", "Div", "MatMul"]
    assert seen[-1][1:] == ([[2, 3], [3, 4]], [[2, 4]])
