"""INT8 and FP8 graphs: what is quantized, how exact it is, what graphs share, and what smoothing is for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from declip_export.calibrate import calibrate, smoothed
from declip_export.graph import EngineGraph
from declip_export.onnx_graph import OnnxGraph
from declip_export.parity import emulate, measure_parity
from declip_export.photos import hold_out, load_photos
from declip_export.quantize import FP8, INT8, quantized
from declip_runtime import onnx_head
from declip_runtime.backends import choose
from declip_runtime.errors import ExportError, UsageError
from declip_runtime.manifest import Preprocess


def int8_graph(engine: Any, folder: Path) -> onnx.ModelProto:
    engine.unpack(folder)
    return onnx.load(str(folder / "int8.onnx"))


@pytest.fixture(scope="module")
def quantized_vit(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The engine of family vit with every graph that there is."""
    images = small("vit").images(16)
    path = tmp_path_factory.mktemp("quantized") / "vit.engine"
    return small("vit").export(path, int8_images=images, fp8_images=images, parity_images=images)


@pytest.mark.parametrize("family", ["vit", "timm-resnet"])
def test_int8_is_quantized_small_and_close(small: Any, family: str, tmp_path: Path) -> None:
    model = small(family)
    engine = model.export(tmp_path / "int8.engine", int8_images=model.images(16))
    graph = int8_graph(engine, tmp_path / "files")
    producers = {n.output[0]: n for n in graph.graph.node}
    constants = {t.name: t for t in graph.graph.initializer}
    quantized = 0
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in producers:
            continue
        weight = producers[node.input[1]]
        if weight.op_type != "DequantizeLinear" or weight.input[0] not in constants:
            continue
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        largest = np.abs(numpy_helper.to_array(constants[weight.input[0]]).astype(int)).max()
        assert largest > 60, "else it would waste what 8 bits can tell apart"
        assert 2 * 255 * largest < 2**15, "the sum of two products, as CPUs with AVX2 but no VNNI keep it"
        assert constants[weight.input[0]].dims[{a.name: a.i for a in weight.attribute}["axis"]] == np.prod(
            constants[weight.input[1]].dims
        ), "one scale an output channel"
        assert producers[node.input[0]].op_type == "DequantizeLinear"
        quantized += 1
    assert quantized == (
        2 * 6 + 2 if family == "vit" else len([t for t in graph.graph.node if t.op_type == "Conv"]) + 1
    )
    zeros = [numpy_helper.to_array(constants[n.input[2]]) for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    assert not any(z.any() for z in zeros), "TensorRT takes symmetric quantization only"

    rows = {r.subject: r for r in measure_parity(model.declip, engine, model.images())}
    int8 = [r for s, r in rows.items() if s.endswith("int8")]
    assert len(int8) == 2, "OpenVINO and ONNX Runtime"
    for row in int8:
        assert row.max_score_difference < 0.1
        assert row.min_cosine > 0.98
        assert row.max_score_difference > 1e-6, "equal to FP32 would mean that nothing was quantized"


@pytest.mark.parametrize(("name", "element"), [("int8-fp16", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)])
def test_graphs_for_gpus_are_fp16_around_their_pairs(
    quantized_vit: Any, name: str, element: int, tmp_path: Path
) -> None:
    quantized_vit.unpack(tmp_path / "files")
    model = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "files" / f"{name}.onnx")), strict_mode=True)
    assert model.opset_import[0].version == 19, "the first whose Q/DQ take FP16 scales and FP8"
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    constants = {t.name: t for t in model.graph.initializer}
    producers = {n.output[0]: n for n in model.graph.node}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        scale, zero = (constants[i] for i in node.input[1:])  # constants, not the results of a Cast
        assert scale.data_type == TensorProto.FLOAT16
        assert zero.data_type == element
        assert not numpy_helper.to_array(zero).astype(np.float32).any()
        if node.op_type == "DequantizeLinear":
            assert types[node.output[0]] == TensorProto.FLOAT16
            source = producers.get(node.input[0])
            assert source is None or source.op_type == "QuantizeLinear"
    products = [n for n in model.graph.node if all(producers.get(i) in pairs for i in n.input[:2])]
    assert [n.op_type for n in products] == ["MatMul"] * (2 * 6 + 2)


def test_graphs_share_their_weights(quantized_vit: Any) -> None:
    graphs = quantized_vit.manifest.graphs
    assert set(graphs) == {"fp32", "fp16", "int8", "int8-fp16", "fp8"}
    places = {g: {(t.offset, t.dtype) for t in onnx_head.tensors(quantized_vit.read(e))} for g, e in graphs.items()}
    int8 = {g: {offset for offset, dtype in found if dtype == "int8"} for g, found in places.items()}
    assert len(int8["int8"]) >= 2 * 6 + 2
    assert int8["int8"] == int8["int8-fp16"]
    assert len([d for _, d in places["fp8"] if d == "float8e4m3fn"]) == 2 * 6 + 2


def test_parity_states_what_gpus_make_of_them(quantized_vit: Any) -> None:
    rows = {r["subject"]: r for r in quantized_vit.manifest.provenance["parity"]}
    for name, cosine in (("int8-fp16", 0.99), ("fp8", 0.99)):
        row = rows[f"{name} graph, emulated"]
        assert row["bar"] == "coarse"
        assert row["min_cosine"] > cosine
        assert row["max_score_difference"] > 1e-4, "equal to FP32 would mean that nothing was quantized"


def test_a_tower_that_loses_its_scores_to_int8_is_refused(small: Any, tmp_path: Path) -> None:
    model = small("timm-efficientnet")  # its weights are random, its convolutions follow each other without a norm
    with pytest.raises(ExportError, match=r"int8 differs .* Calibrate with more photos .* leave this precision out"):
        model.export(tmp_path / "x.engine", int8_images=model.images(8), parity_images=model.images())
    assert not list(tmp_path.iterdir())


def test_int8_is_the_same_on_gpus_as_on_cpus(small: Any, quantized_vit: Any) -> None:
    images = small("vit").images()
    cpu, gpu = emulate(quantized_vit, "int8", images), emulate(quantized_vit, "int8-fp16", images)
    assert (cpu.perceptual * gpu.perceptual).sum(1).min() > 0.9995


def test_emulated_int8_is_onnx_runtimes(small: Any, quantized_vit: Any) -> None:
    images = small("vit").images()
    wanted = choose(quantized_vit, "onnxruntime", precision="int8").run(images)
    assert (wanted.perceptual * emulate(quantized_vit, "int8", images).perceptual).sum(1).min() > 0.999


@pytest.mark.parametrize("form", [INT8, FP8])
def test_scales_are_fp16_numbers_that_clip_nothing(form: Any) -> None:
    graph = OnnxGraph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": np.array([[1e-9, 0.3, 0], [-2e-9, -70000.0, 0]], np.float32)},
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        (),
        {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT},
    )
    result = quantized(graph, {"w": 3.3}, form)
    for name, limits in (("x", np.array(3.3)), ("w", np.abs(graph.constants["w"]).max(None if form is FP8 else 0))):
        scale = result.constants[f"{name}.scale"]
        assert (scale == scale.astype(np.float16)).all()
        assert (scale > 0).all()
        largest = form.largest if name == "x" else form.largest_weight
        assert (scale * largest >= limits.astype(np.float32)).all()


def test_fp8_is_refused_where_it_would_do_nothing(small: Any, tmp_path: Path) -> None:
    model = small("resnet-attention-pool")
    with pytest.raises(UsageError, match="no layer that FP8 would speed up"):
        model.export(tmp_path / "x.engine", fp8_images=model.images(8))


def test_fp8_needs_fp16(small: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FP8 needs FP16 around it"):
        small("vit").export(tmp_path / "x.engine", fp8_images=small("vit").images(8), fp16=False)


def test_without_fp16_there_is_nothing_for_gpus(small: Any, tmp_path: Path) -> None:
    images = small("vit").images(8)
    engine = small("vit").export(tmp_path / "x.engine", int8_images=images, parity_images=images, fp16=False)
    assert set(engine.manifest.graphs) == {"fp32", "int8"}
    assert engine.manifest.provenance["range_audit"] == {}


def test_smoothing_changes_nothing_in_fp32_and_helps_against_outliers(small: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(small("vit"))
    with torch.no_grad():  # what trained transformers have: a few channels of a norm's output that are much larger
        for block in model.declip.visual.transformer.resblocks:
            for norm, consumer in ((block.ln_1, block.attn.in_proj_weight), (block.ln_2, block.mlp.c_fc.weight)):
                norm.weight[:3] *= 60
                norm.bias[:3] *= 60
                consumer[:, :3] /= 60
    images = model.images(16)
    graph = EngineGraph(model.declip, model.preprocess)
    even = smoothed(graph, images)
    with torch.no_grad():
        for a, b in zip(graph(torch.from_numpy(images)), even(torch.from_numpy(images)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    plain, levelled = calibrate(graph, images), calibrate(even, images)
    names = [f"tower.blocks.{i}.{layer}.weight" for i in range(2) for layer in ("attention.k", "up")]
    assert all(levelled[n] < plain[n] / 4 for n in names)
    engine = model.export(tmp_path / "outliers.engine", int8_images=images)
    wanted = choose(engine, "onnxruntime", precision="fp32").run(images)
    found = choose(engine, "onnxruntime", precision="int8").run(images)
    assert (wanted.perceptual * found.perceptual).sum(1).min() > 0.98


def test_layers_that_share_an_input_share_its_rounding(small: Any) -> None:
    model = small("vit")
    ranges = calibrate(EngineGraph(model.declip, model.preprocess), model.images(16))
    assert ranges["tower.blocks.0.attention.q.weight"] == ranges["tower.blocks.0.attention.v.weight"]


def test_too_few_photos(small: Any, tmp_path: Path) -> None:
    model = small("vit")
    with pytest.raises(UsageError, match="3 photos cannot calibrate"):
        model.export(tmp_path / "x.engine", int8_images=model.images(3))
    assert not list(tmp_path.iterdir()), "nothing half-made stays behind"


# --- photos that calibrate and photos that judge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos of one grey each, and five files that are none."""
    for i in range(5):
        Image.new("RGB", (20, 30), (i, i, i)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}-broken.jpg").write_bytes(b"not a picture")
    return tmp_path


def test_unreadable_photos_are_skipped_and_named(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"5 of 10 photos .* were skipped: .*0-broken\.jpg.*2-broken\.jpg.* \.\.\.$"):
        pixels = load_photos(folder, Preprocess(16), minimum=5)
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_too_few_readable_photos_are_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"5 photos below .* can be used, 6 are needed.*5 of 10.*0-broken\.jpg"):
        load_photos(folder, Preprocess(16), minimum=6)


@pytest.mark.parametrize(("photos", "judging"), [(2, 1), (9, 1), (20, 4), (256, 16)])
def test_photos_are_held_out_all_along(photos: int, judging: int) -> None:
    pixels = np.arange(photos).reshape(-1, 1, 1, 1)
    calibrating, held = hold_out(pixels)
    assert len(held) == judging
    assert sorted([*calibrating.ravel(), *held.ravel()]) == list(range(photos))
    assert np.diff(held.ravel()).max(initial=0) <= photos // judging + 1
