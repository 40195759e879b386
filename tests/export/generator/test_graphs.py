"""The ONNX graphs: what runtimes make of them at any size, what they look like, and how they are typed FP16."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from declip_export.evaluator import Evaluator
from declip_export.generator.components import Component, components_of, fix_sizes
from declip_export.generator.embedder import embedder_of
from declip_export.generator.emission import emit
from declip_export.generator.layers import Sinusoid
from declip_export.generator.library import library
from declip_export.onnx_graph import OnnxGraph
from declip_export.precision import to_fp16, with_fp32_outputs
from declip_export.range_audit import audit_feeds
from declip_export.vit import ExportViT
from declip_export.weights import WEIGHTS, WeightStore, head
from declip_runtime.errors import ExportError
from declip_runtime.signature import Range, TensorSpec
from tests.export.conftest import REWRITTEN
from tests.export.test_tensorrt_operators import NAMES, VERSIONS, Support

from . import tiny
from .conftest import FAMILIES, Loaded, Tiny, load

COMPONENTS = ("text_encoder", "image_encoder", "image_tokens", "vae_decoder", "unet")
SIZES = [
    {"batch": 1, "conditions": 1, "tokens": 4, "height": 8, "width": 8},
    {"batch": 3, "conditions": 2, "tokens": 12, "height": 6, "width": 14},
]
RNG = np.random.default_rng(0)


def made(loaded: Loaded, name: str) -> Component:
    return next(c for c in components_of(loaded.base, loaded.adapter, loaded.embedder) if c.name == name)


def feeds(component: Component, sizes: dict[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, spec in component.inputs.items():
        shape = spec.sized(sizes)
        if spec.dtype == "float32":
            found[name] = RNG.normal(size=shape).astype(np.float32)
        else:
            found[name] = RNG.integers(0, 256, shape).astype(spec.dtype)
    for name in component.inputs:
        if name.startswith("input_ids"):
            found[name][:, 50:] = tiny.VOCABULARY - 1  # the end of text
    if "timestep" in found:
        found["timestep"] = RNG.uniform(0, 999, sizes["batch"]).astype(np.float32)
    if "time_ids" in found:
        found["time_ids"] = RNG.integers(0, 2048, (sizes["batch"], 6)).astype(np.float32)
    return found


def written(graph: OnnxGraph, folder: Path, storage: Any = "float32") -> Path:
    with WeightStore(folder / WEIGHTS, storage) as store:
        (folder / "graph.onnx").write_bytes(head(graph, store))
    return folder / "graph.onnx"


@torch.no_grad()
def computed(component: Component, given: dict[str, Any]) -> list[Any]:
    result = component.module(**{name: torch.from_numpy(array) for name, array in given.items()})
    return [r.numpy() for r in (result if isinstance(result, tuple) else (result,))]


def relative(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", COMPONENTS)
def test_one_graph_for_every_size(loaded: Loaded, name: str, tmp_path: Path) -> None:
    component = made(loaded, name)
    graph = emit(component.module, component.inputs, component.outputs, "float32")
    path = written(graph, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for sizes in SIZES:
        given = feeds(component, sizes)
        wanted = computed(component, given)
        for spec, a, b in zip(component.outputs.values(), session.run(None, given), wanted, strict=True):
            assert a.shape == spec.sized(sizes)
            assert relative(a, b) < 1e-5
        for a, b in zip(Evaluator(graph).run(given), wanted, strict=True):
            assert relative(a, b) < 1e-5


@pytest.mark.parametrize("family", sorted(REWRITTEN))
def test_every_kind_of_vision_transformer(small: Any, family: str) -> None:
    """And both forms of projectors, by the same table of operators."""
    model = small(family)
    body = ExportViT(model.declip.visual, model.preprocess)
    embedder = embedder_of(
        body, model.preprocess, family, "random", model.declip.perceptual, model.declip.semantic, dtype="float32"
    )
    images = model.images(3)
    with torch.no_grad():
        wanted = embedder.encoder(torch.from_numpy(images))
    embedding = TensorSpec("float32", ("batch", embedder.dim))
    outputs = dict.fromkeys(("identity", "perceptual", "semantic"), embedding)
    specs = {"images": TensorSpec("uint8", ("batch", model.preprocess.size, model.preprocess.size, 3))}, outputs
    graph = emit(embedder.encoder, *specs, "float32")
    for a, b in zip(Evaluator(graph).run({"images": images}), wanted, strict=True):
        assert relative(a, b.numpy()) < 1e-5


def test_weights_are_neither_copied_nor_renamed(models: Tiny) -> None:
    """What makes a full-size export fit into little more memory than the model."""
    loaded = load(models, "sd", "float16")
    for name in COMPONENTS:
        component = made(loaded, name)
        graph = emit(component.module, component.inputs, component.outputs, "float16")
        for path, parameter in component.module.named_parameters():
            array = graph.constants[path]
            assert array.dtype == np.float16
            assert graph.types[path] == TensorProto.FLOAT
            assert np.shares_memory(array, parameter.detach().numpy()), path


def test_fp32_weights_are_rounded_for_fp16_storage(loaded_sd: Loaded) -> None:
    component = made(loaded_sd, "unet")
    graph = emit(component.module, component.inputs, component.outputs, "float16")
    weight = component.module.get_parameter("conv_in.weight")
    np.testing.assert_array_equal(graph.constants["conv_in.weight"], weight.half().numpy())
    assert graph.constants["time_proj.sine_coarse"].dtype == np.float32, "tables are no weights"


def test_a_fixed_size_is_in_the_graph_and_free_ones_keep_their_names(loaded_sd: Loaded) -> None:
    component = made(loaded_sd, "vae_decoder")
    graph = emit(component.module, component.inputs, component.outputs, "float32")
    data = head(graph, WeightStore(Path("/dev/null"), "float32"))
    signature = component.signature({"height": Range(8, 8, 8), "width": Range(8, 16, 32)})
    assert signature.inputs["latents"].shape == ("batch", 4, 8, "width")
    assert signature.outputs["images"].shape == ("batch", 64, "8*width", 3)
    assert set(signature.free) == {"batch", "width"}
    model = onnx.load_from_string(fix_sizes(data, signature))
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 4, 8, "width"], ["batch", 64, "8*width", 3]]


# --- what runtimes see


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("name", COMPONENTS)
def test_tensorrt_knows_every_operator_and_type(loaded: Loaded, name: str, typed: bool, tmp_path: Path) -> None:
    component = made(loaded, name)
    graph = emit(component.module, component.inputs, component.outputs, "float16")
    model = onnx.load(str(written(with_fp32_outputs(to_fp16(graph)) if typed else graph, tmp_path, "float16")))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    for path in VERSIONS:
        support = Support(path)
        for node in model.graph.node:
            assert node.op_type in support.types, f"{node.op_type} is not supported"
            told = node.input[:1] if node.op_type == "Equal" else [node.input[0], *node.output]  # whose result is BOOL
            used = {NAMES[types[value]] for value in told}  # type: ignore[index]
            assert used <= support.types[node.op_type], f"{node.op_type} with {used}"


def executed(path: Path, precision: str) -> Any:
    import openvino

    return openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_openvino_fuses_attention(loaded: Loaded, name: str, tmp_path: Path) -> None:
    """To the picture itself and to the text; to image tokens, which are few, it need not be."""
    component = made(loaded, name)
    graph = emit(component.module, component.inputs, component.outputs, "float32")
    operations = executed(written(graph, tmp_path), "f32").get_runtime_model().get_ordered_ops()
    infos = [o.get_rt_info() for o in operations]
    names = [str(i["originalLayersNames"].astype(str)) for i in infos if i["layerType"].astype(str) == "Subgraph"]
    fused = [n for n in names if "softmax" in n and n.count("matmul") >= 2]
    softmaxes = sum(node.op_type == "Softmax" for node in graph.nodes)
    layers = len(component.module.layers) if name == "unet" else 0  # type: ignore[arg-type]
    assert len(fused) == softmaxes - layers
    kinds = Counter(str(i["layerType"].astype(str)) for i in infos)
    assert kinds["Softmax"] == layers, kinds


def test_timesteps_survive_bf16(tmp_path: Path) -> None:
    """A plain product with the frequencies is off by a fifth of the embedding there."""
    import openvino

    if openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string() != "bf16":
        pytest.skip("this CPU has no bf16 instructions")

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves = Sinusoid(library("diffusers.models.embeddings").Timesteps(320, True, 0))
            weight = torch.randn(320, 64, generator=torch.Generator().manual_seed(0)) / 320**0.5
            self.weight = torch.nn.Parameter(weight)

        def forward(self, timestep: torch.Tensor) -> torch.Tensor:
            return torch.matmul(self.waves(timestep), self.weight)

    module = Embedding()
    specs = {"timestep": TensorSpec("float32", ("batch",))}, {"y": TensorSpec("float32", ("batch", 64))}
    compiled = executed(written(emit(module, *specs, "float32"), tmp_path), "bf16")
    timesteps = torch.cat([torch.arange(0.0, 1000, 7), torch.tensor([999.0, 981.0, 624.37, 1.5])])
    with torch.no_grad():
        wanted = module(timesteps).numpy()
    assert relative(np.array(compiled([timesteps.numpy()])[0]), wanted) < 0.01


# --- FP16


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_typed_graphs(models: Tiny, family: Any, tmp_path: Path) -> None:
    loaded = load(models, family, "float16")
    component = made(loaded, "unet")
    graph = emit(component.module, component.inputs, component.outputs, "float16")
    typed = with_fp32_outputs(to_fp16(graph))
    types = {name: typed.type_of(name) for node in typed.nodes for name in (*node.input, *node.output) if name}
    for node in typed.nodes:
        if node.op_type in ("Conv", "MatMul"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}, node.name
        if node.op_type in ("Softmax", "LayerNormalization", "InstanceNormalization", "Sin", "Cos", "Mod"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    onnx.checker.check_model(str(written(typed, tmp_path, "float16")), full_check=True)
    assert (tmp_path / WEIGHTS).stat().st_size < 1.2 * sum(p.numel() * 2 for p in component.module.parameters())
    given = feeds(component, SIZES[1])
    exact, rounded = (Evaluator(g).run(given)[0] for g in (graph, typed))
    assert rounded.dtype == np.float32, "outputs keep their type"
    assert 1e-5 < relative(rounded, exact) < 1e-2


def test_what_is_too_large_for_fp16_stays_fp32(models: Tiny) -> None:
    loaded = load(models, "sd", "float32")
    attention = loaded.base.pipeline.unet.up_blocks[1].attentions[0].transformer_blocks[0]
    with torch.no_grad():  # the residual stream reaches several times FP16's end there
        attention.ff.net[2].weight.mul_(1e6)
    component = made(loaded, "unet")
    graph = emit(component.module, component.inputs, component.outputs, "float32")
    audit = audit_feeds(graph, [feeds(component, SIZES[0])])
    assert audit.images == 1
    assert any(value.reason == "overflow" for value in audit.kept)
    given = feeds(component, SIZES[1])
    wanted = Evaluator(graph).run(given)[0]
    assert not np.isfinite(Evaluator(to_fp16(graph)).run(given)[0]).all()
    assert relative(Evaluator(audit.to_fp16(graph)).run(given)[0], wanted) < 1e-2


def small(nodes: list[Any], constants: dict[str, Any], types: dict[str, int], inputs: dict[str, Any]) -> OnnxGraph:
    """A graph of float inputs by name and shape, whose output is ``y``."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    floats = {name: TensorProto.FLOAT for node in nodes for name in node.output}
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    found = {**dict.fromkeys(inputs, TensorProto.FLOAT), **floats, **types}
    return OnnxGraph(nodes, constants, infos, [output], (), found)


def test_enlarging_moves_values_in_fp16_and_other_resizing_computes() -> None:
    def resized(mode: str, **attributes: Any) -> OnnxGraph:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Resize", ["product", "", "scales"], ["y"], mode=mode, **attributes),
        ]
        constants = {"w": np.eye(4, dtype=np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
        return small(nodes, constants, {}, {"x": [1, 2, 3, 4]})

    nearest = resized("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    typed = with_fp32_outputs(to_fp16(nearest))
    kinds = [(n.op_type, typed.type_of(n.output[0])) for n in typed.nodes]
    assert kinds[-2:] == [("Resize", TensorProto.FLOAT16), ("Cast", TensorProto.FLOAT)]
    assert typed.type_of("scales") == TensorProto.FLOAT, "ONNX allows no other type"
    x = RNG.normal(size=(1, 2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(Evaluator(nearest).run({"x": x})[0], x.repeat(2, 2).repeat(2, 3))
    assert to_fp16(nearest).type_of("y") == TensorProto.FLOAT16
    assert to_fp16(resized("linear")).type_of("y") == TensorProto.FLOAT


def test_constants_of_another_type_than_their_arrays() -> None:
    """FP16 arrays that are FP32 constants: evaluated, typed and written as such, also as a node's first input."""
    nodes = [
        helper.make_node("Add", ["x", "b"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "w"], ["product"]),
        helper.make_node("Mul", ["b", "product"], ["scaled"]),
        helper.make_node("Add", ["scaled", "z"], ["y"]),
    ]
    weight, bias = RNG.normal(size=(300, 300)).astype(np.float16), RNG.normal(size=300).astype(np.float16)
    shapes = {"x": [2, 300], "z": [2, 300]}
    graph = small(nodes, {"w": weight.T, "b": bias}, dict.fromkeys("wb", TensorProto.FLOAT), shapes)
    x, z = (RNG.normal(size=(2, 300)).astype(np.float32) for _ in "xz")
    found = Evaluator(graph).run({"z": z, "x": x})[0]
    full = bias.astype(np.float32)
    assert relative(found, full * ((x + full) @ weight.T.astype(np.float32)) + z) < 1e-6
    typed = to_fp16(graph)
    assert typed.type_of("shifted") == TensorProto.FLOAT, "inputs are FP32 until the first product, constants or not"
    assert typed.type_of("product") == TensorProto.FLOAT16
    assert typed.type_of("w.fp16") == TensorProto.FLOAT16
    assert typed.constants["w.fp16"] is graph.constants["w"]


def test_group_norms_as_torch_computes_them(tmp_path: Path) -> None:
    norm = tiny.randomize(torch.nn.GroupNorm(4, 12, eps=1e-3), 0)
    specs = ({"input": TensorSpec("float32", ("batch", 12, "height", "width"))},) * 2
    graph = emit(torch.nn.Sequential(norm), *specs, "float32")
    x = 3 + 2 * torch.randn(2, 12, 5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(Evaluator(graph).run(x.numpy())[0], norm(x).numpy()) < 1e-5


# --- what cannot be exported


class Odd(torch.nn.Module):
    def __init__(self, compute: Any, weight: float = 1.0) -> None:
        super().__init__()
        self.compute = compute
        self.weight = torch.nn.Parameter(torch.tensor([weight]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.compute(x * self.weight)
        return result


@pytest.mark.parametrize(
    ("compute", "what"),
    [
        (lambda x: torch.cumsum(x, 1), "cumsum"),
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: x[:, ::2], "picks"),
        (lambda x: torch.nn.functional.interpolate(x[:, :, None], scale_factor=2.0, mode="linear"), "enlarges"),
        (lambda x: torch.nn.functional.pad(x, (1, 1), mode="reflect"), "pads"),
        (lambda x: x.to(x.dtype), "dtype"),
        (lambda x: x if x.sum() > 0 else -x, "control flow"),
    ],
)
def test_operations_that_are_not_known_are_named(compute: Any, what: str) -> None:
    specs = ({"x": TensorSpec("float32", ("batch", 4))},) * 2
    with pytest.raises(ExportError, match=what):
        emit(Odd(compute), *specs, "float32")


def test_weights_beyond_fp16_are_named() -> None:
    specs = ({"x": TensorSpec("float32", ("batch", 4))},) * 2
    emit(Odd(torch.relu, 1e6), *specs, "float32")
    with pytest.raises(ExportError, match=r"weight does not fit FP16.*--weights float32"):
        emit(Odd(torch.relu, 1e6), *specs, "float16")
