"""The FP16-typed copy: where casts stand, what the range audit keeps in FP32, and that it saves what would overflow."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from declip_export.engine import export_engine
from declip_export.graph import EngineGraph
from declip_export.onnx_graph import OnnxGraph, trace
from declip_export.parity import LIMITS, ParityRow, emulate, measure_parity, orders, require_parity
from declip_export.photos import load_photos, sample_images
from declip_export.precision import to_fp16
from declip_export.range_audit import LARGEST, SAFETY, audit_range
from declip_runtime.backends import choose
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import ExportError

from .conftest import EACH_FAMILY, FAMILIES

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
MOVES = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "Flatten", "Split", "Identity", "Concat"}
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
SCALE = 5e4  # of the residual stream: its values reach several times FP16's end


# --- the form of the typed graph


class Typed:
    """A graph of an engine with the type of every value."""

    def __init__(self, engine: EngineFile, name: str, folder: Path) -> None:
        engine.unpack(folder)
        model = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        values = [*graph.value_info, *graph.input, *graph.output]
        self.nodes = list(graph.node)
        self.constants = {t.name: t.data_type for t in graph.initializer}
        self.types = {v.name: v.type.tensor_type.elem_type for v in values} | self.constants
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.casts = [n for n in self.nodes if n.op_type == "Cast"]
        self.domains = {n.domain for n in self.nodes}


@pytest.mark.parametrize("family", FAMILIES)
def test_casts_are_placed_once(exported: Any, family: str, tmp_path: Path) -> None:
    graph = Typed(exported(family), "fp16", tmp_path / "files")
    assert graph.domains == {""}
    assert max(Counter((n.input[0], n.attribute[0].i) for n in graph.casts).values()) == 1, "one value cast twice"
    for cast in graph.casts:
        source = graph.makers.get(cast.input[0])
        assert source is None or source.op_type != "Cast", f"{source.output[0]} is cast to {cast.output[0]} at once"
        assert graph.types[cast.input[0]] != cast.attribute[0].i, f"{cast.name} casts to what is there"


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_rounded_between_two_fp32_nodes(exported: Any, family: str, tmp_path: Path) -> None:
    graph = Typed(exported(family), "fp16", tmp_path / "files")
    for cast in graph.casts:
        node = graph.makers.get(cast.input[0])
        while node is not None and node.op_type in MOVES:
            node = graph.makers.get(node.input[0])
        if cast.attribute[0].i == FLOAT and node is not None and node.op_type == "Cast":
            assert graph.types[node.input[0]] != FLOAT, f"{node.input[0]} is rounded to FP16 and cast back"


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_fp16_nodes_are_fp16_constants(exported: Any, family: str, tmp_path: Path) -> None:
    graph = Typed(exported(family), "fp16", tmp_path / "files")
    cast_down = [n.name for n in graph.casts if n.input[0] in graph.constants and n.attribute[0].i == HALF]
    assert not cast_down
    products = [n for n in graph.nodes if n.op_type in ("MatMul", "Gemm", "Conv")]
    assert all(graph.types[name] == HALF for node in products for name in (*node.input, *node.output))


def test_fp32_storage_casts_its_weights_down_once(small: Any, tmp_path: Path) -> None:
    engine = small("vit").export(tmp_path / "x.engine", weights_dtype="float32")
    graph = Typed(engine, "fp16", tmp_path / "files")
    assert max(Counter((n.input[0], n.attribute[0].i) for n in graph.casts).values()) == 1


# --- what is kept


def small_graph(nodes: list[Any], constants: dict[str, Any], width: int = 4) -> OnnxGraph:
    """uint8 ``images`` [n, width] -> Cast ``x`` -> ``nodes`` -> ``y``, in FP32, without a head."""
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=FLOAT), *nodes]
    values = {name: FLOAT for node in nodes for name in node.output}
    return OnnxGraph(
        nodes,
        {n: np.asarray(a, np.float32) for n, a in constants.items()},
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", width])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", None])],
        (),
        {"images": TensorProto.UINT8, **values},
    )


def chain(*factors: float, start: str = "w") -> tuple[list[Any], dict[str, Any]]:
    """A product with the unit matrix, then multiplications by ``factors``: values v0, v1, ... and ``y``."""
    names = [f"v{i}" for i in range(len(factors))] + ["y"]
    nodes = [helper.make_node("MatMul", ["x", start], [names[0]])]
    nodes += [helper.make_node("Mul", [a, f"f{i}"], [b]) for i, (a, b) in enumerate(itertools.pairwise(names))]
    return nodes, {start: np.eye(4), **{f"f{i}": f for i, f in enumerate(factors)}}


def images(top: int = 255) -> Any:
    return np.linspace(0, top, 40).astype(np.uint8).reshape(10, 4)


def types_of(graph: OnnxGraph) -> dict[str, int]:
    return {name: graph.types[name] for node in graph.nodes if node.op_type != "Cast" for name in node.output}


def test_what_makes_or_reads_a_kept_value_is_fp32() -> None:
    nodes, constants = chain(200.0, 0.01, 2.0)
    typed = to_fp16(small_graph(nodes, constants), {"v1"})
    assert types_of(typed) == {"v0": HALF, "v1": FLOAT, "v2": FLOAT, "y": HALF}
    assert [(n.input[0], n.attribute[0].i) for n in typed.nodes if n.op_type == "Cast"][1:] == [
        ("x", HALF),
        ("v0", FLOAT),
        ("v2", HALF),
    ]


def test_a_kept_value_stays_fp32_through_its_quantization() -> None:
    nodes, constants = chain(200.0, 0.01)
    pair = [
        helper.make_node("QuantizeLinear", ["v1", "scale", "zero"], ["v1.int8"]),
        helper.make_node("DequantizeLinear", ["v1.int8", "scale", "zero"], ["v1.dequantized"]),
    ]
    nodes[2].input[0] = "v1.dequantized"
    graph = small_graph([*nodes[:2], *pair, nodes[2]], {**constants, "scale": 400.0})
    graph.constants["zero"] = np.int8(0)
    graph.types["v1.int8"] = TensorProto.INT8
    typed = types_of(to_fp16(graph, {"v1"}))
    assert typed["v1"] == typed["v1.dequantized"] == FLOAT
    assert types_of(to_fp16(graph))["v1.dequantized"] == HALF


@pytest.mark.parametrize(
    ("factors", "kept"),
    [
        ((2.0, 3.0), []),
        ((LARGEST / SAFETY / 255 * 0.99, 0.1), []),
        ((LARGEST / SAFETY / 255 * 1.01, 0.1), [("v1", "overflow")]),
        ((1e30, 1e30), [("v1", "overflow"), ("y", "overflow"), ("f0", "overflow"), ("f1", "overflow")]),
        ((1e-3, 1e-2), []),
        ((1e-3, 1e-4, 1e3), [("v2", "lost precision")]),
        ((1.0, 1e-7), [("f1", "lost precision"), ("y", "lost precision")]),
    ],
)
def test_the_audit_names_what_fp16_cannot_hold(factors: tuple[float, ...], kept: list[Any]) -> None:
    audit = audit_range(small_graph(*chain(*factors)), images())
    assert sorted((r.tensor, r.reason) for r in audit.kept) == sorted(kept)


def test_values_that_are_not_finite_even_in_fp32_are_named_with_a_finite_magnitude() -> None:
    audit = audit_range(small_graph(*chain(1e30, 1e30)), images())
    assert json.loads(json.dumps(audit.summary(), allow_nan=False))["largest"]["magnitude"] > 1e38


def test_weights_that_leave_fp16_are_kept_without_a_margin() -> None:
    nodes, constants = chain(0.1)
    for largest, kept in ((65000.0, False), (66000.0, True)):
        weight = np.diag([largest, 0, 0, 0])
        audit = audit_range(small_graph(nodes, {**constants, "w": weight}), np.zeros((2, 4), np.uint8))
        assert [r.tensor for r in audit.kept] == (["w"] if kept else [])


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_sum_that_overflows_on_the_way_is_kept(kind: str) -> None:
    """200 x 100 and back: the result is small, but no order of adding keeps all partial sums so."""
    weight = np.array([[100.0], [100.0], [-100.0], [-100.0]])
    nodes = [helper.make_node(kind, ["x", "w"], ["y"])]
    pixels = np.full((3, 4), 200, np.uint8)
    audit = audit_range(small_graph(nodes, {"w": weight}), pixels)
    assert [(r.tensor, r.reason) for r in audit.kept] == [("y", "overflowing sum")]
    assert audit.kept[0].magnitude == 0
    assert audit.kept[0].partial_sum == 80_000
    assert not audit_range(small_graph(nodes, {"w": weight / 10}), pixels).kept


def test_at_most_sixteen_images_spread_over_all_are_looked_at() -> None:
    pixels = np.zeros((1000, 4), np.uint8)
    pixels[-1] = 255
    audit = audit_range(small_graph(*chain(1000.0)), pixels)
    assert audit.images == 16
    assert [r.tensor for r in audit.kept] == ["y"], "the last photo counts"


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_an_audit_that_finds_nothing_changes_nothing(small: Any, family: str, tmp_path: Path) -> None:
    model = small(family)
    graph = trace(EngineGraph(model.declip, model.preprocess, semantic=True).round_weights(), tmp_path)
    audit = audit_range(graph, model.images(4))
    if family == "timm-vit":  # its untrained class token is a millionth
        assert {r.reason for r in audit.kept} == {"lost precision"}
    else:
        assert not audit.kept
        assert [n.SerializeToString() for n in audit.to_fp16(graph).nodes] == [
            n.SerializeToString() for n in to_fp16(graph).nodes
        ]
    judged = {r.tensor for r in audit.ranges}
    assert len(judged) == len(audit.ranges) > 40
    products = [n.output[0] for n in graph.nodes if n.op_type in ("MatMul", "Gemm", "Conv")]
    assert judged.issuperset(products)


# --- what it is for


def overflowing(model: Any, family: str) -> Any:
    """The same function, but for rounding, through values beyond FP16."""
    model = replace(model, declip=copy.deepcopy(model.declip))
    visual = model.declip.visual
    with torch.no_grad():
        if family == "vit":  # every block reads the residual stream through a LayerNorm, which undoes its scale
            scaled = [visual.ln_pre, *(b.attn.out_proj for b in visual.transformer.resblocks)]
            scaled += [b.mlp.c_proj for b in visual.transformer.resblocks]
            for module in scaled:
                module.weight *= SCALE
                module.bias *= SCALE
        else:
            for parameter in visual.parameters():
                if parameter.ndim == 4:
                    parameter *= 2 / 1.5
    return model


@pytest.mark.parametrize("family", ["vit", "timm-efficientnet"])
def test_the_audit_saves_a_tower_that_overflows(small: Any, family: str, tmp_path: Path, monkeypatch: Any) -> None:
    model = overflowing(small(family), family)
    pixels = model.images()
    saved = model.export(tmp_path / "saved.engine")
    rows = {r.subject: r for r in measure_parity(model.declip, saved, pixels)}
    kept = saved.manifest.provenance["range_audit"]["fp16"]["kept_fp32"]
    assert max(k["magnitude"] for k in kept) > LARGEST
    assert {"tensor", "node", "magnitude", "reason"} == set(kept[0])
    half = rows["fp16 graph, emulated"]
    assert half.min_cosine > LIMITS["half"][1]
    if family == "vit":
        require_parity([half])
        assert len(kept) < 40, "the residual stream and what is added to it, not the whole tower"
        products = [n for n in Typed(saved, "fp16", tmp_path / "files").nodes if n.op_type == "MatMul"]
        graph = Typed(saved, "fp16", tmp_path / "again")
        assert Counter(graph.types[n.output[0]] for n in products) == {HALF: len(products) - 4, FLOAT: 4}

    monkeypatch.setattr("declip_export.range_audit.RangeAudit.to_fp16", lambda _, graph: to_fp16(graph))
    lost = model.export(tmp_path / "lost.engine")
    rows = {r.subject: r for r in measure_parity(model.declip, lost, pixels)}
    assert not rows["fp16 graph, emulated"].min_cosine > 0.9, "NaN, in fact"
    with pytest.raises(ExportError, match=r"fp16 graph, emulated differs .* export it for CPUs only, with --no-fp16"):
        require_parity([*rows.values()])


def test_an_export_that_misses_the_bar_fails_and_leaves_nothing(small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model = overflowing(small("vit"), "vit")
    monkeypatch.setattr("declip_export.range_audit.RangeAudit.to_fp16", lambda _, graph: to_fp16(graph))
    with pytest.raises(ExportError, match="--no-fp16"):
        model.export(tmp_path / "x.engine", parity_images=model.images(4))
    assert not list(tmp_path.iterdir())
    model.export(tmp_path / "x.engine", parity_images=model.images(4), fp16=False)


def test_swapping_what_is_clearly_apart_misses_the_half_bar() -> None:
    """Near ties may change places. What is further apart than a score may change must not, though its bar allows it."""
    wanted = np.array([[0.100], [0.101], [0.107], [0.300]], np.float32)
    ties = np.array([[0.1012], [0.1008], [0.107], [0.300]], np.float32)
    clear = np.array([[0.1045], [0.101], [0.1025], [0.300]], np.float32)  # nobody moves by more than 0.0045
    assert orders(ties, wanted) == (6, 1, 0)
    assert orders(clear, wanted) == (6, 2, 1)
    row = ParityRow("fp16", "fp32", 4, 0.0045, 0.002, 0.9999, *orders(ties, wanted), "half")
    assert row.passed
    require_parity([row])
    row = replace(row, swapped_pairs=2, clear_swaps=1)
    assert not row.passed
    with pytest.raises(ExportError, match="1 clear pairs"):
        require_parity([row])
    assert replace(row, bar=None).passed, "what has no bar is stated"


def test_the_audit_holds_for_quantized_graphs_too(small: Any, tmp_path: Path) -> None:
    model = overflowing(small("vit"), "vit")
    pixels = model.images(16)
    engine = model.export(tmp_path / "x.engine", int8_images=pixels, fp8_images=pixels)
    wanted = choose(engine, "onnxruntime", precision="fp32").run(pixels)
    for graph in ("int8-fp16", "fp8"):
        found = emulate(engine, graph, pixels)
        assert (wanted.perceptual * found.perceptual).sum(1).min() > 0.98


def test_fp32_storage_is_audited_as_it_is_computed(small: Any, tmp_path: Path) -> None:
    """A weight beyond FP16, which FP32 storage allows, keeps its product in FP32."""
    model = replace(small("vit"), declip=copy.deepcopy(small("vit").declip))
    with torch.no_grad():
        block = model.declip.visual.transformer.resblocks[1]
        block.mlp.c_fc.weight[0] = 0
        block.mlp.c_fc.weight[0, 0] = 1e5
        block.mlp.c_proj.weight[:, 0] = 0
    engine = model.export(tmp_path / "x.engine", weights_dtype="float32", parity_images=model.images(4))
    kept = engine.manifest.provenance["range_audit"]["fp16"]["kept_fp32"]
    assert ("tower.blocks.1.up.weight", "overflow") in {(k["tensor"], k["reason"]) for k in kept}


# --- photos


def test_the_bundled_engine_ranks_the_sample_photos_the_same_in_fp16() -> None:
    engine = EngineFile.open(bundled_engine())
    with pytest.warns(UserWarning, match=r"broken\.jpg"):
        photos = load_photos(PHOTOS, engine.manifest.preprocess)
    assert len(photos) == 10
    wanted, found = choose(engine, "openvino", precision="fp32").run(photos), emulate(engine, "fp16", photos)
    score, cosine = LIMITS["half"]
    assert np.abs(found.scores - wanted.scores).max() < score
    assert (found.perceptual * wanted.perceptual).sum(1).min() > cosine
    np.testing.assert_array_equal(np.argsort(found.scores[:, 0]), np.argsort(wanted.scores[:, 0]))
    assert orders(found.scores, wanted.scores)[2] == 0, "nor any other score, of photos that FP32 holds apart"


def test_audit_uses_the_photos_that_calibrate(small: Any, tmp_path: Path) -> None:
    model = small("vit")
    engine = export_engine(
        model.declip, model.preprocess, model.specs, tmp_path / "x.engine", int8_images=model.images(9),
        parity_images=sample_images(model.preprocess.size, 3, seed=1),
    )  # fmt: skip
    audits = engine.manifest.provenance["range_audit"]
    assert {name: audit["images"] for name, audit in audits.items()} == {"fp16": 9, "int8-fp16": 9}
