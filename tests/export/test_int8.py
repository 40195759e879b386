"""The INT8 graph: what is quantized, how exact it is, and what smoothing is for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image

from declip_export.graph import EngineGraph
from declip_export.int8 import calibrate, smoothed
from declip_export.parity import measure_parity
from declip_export.photos import hold_out, load_photos
from declip_runtime.backends import choose
from declip_runtime.errors import UsageError
from declip_runtime.manifest import Preprocess


def int8_graph(engine: Any, folder: Path) -> onnx.ModelProto:
    engine.unpack(folder)
    return onnx.load(str(folder / "int8.onnx"))


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
