"""Engines that generate: manifest, file, and their components on every backend, against numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from declip_runtime import backends
from declip_runtime.backends.tensorrt import TensorRTBackend
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import Content, add_plans, pack, write_engine
from declip_runtime.errors import (
    BackendExecutionError,
    DeviceMemoryError,
    EngineCorruptError,
    InvalidArrayError,
    ManifestError,
    PrecisionError,
    ScorerStateError,
    UsageError,
)
from declip_runtime.manifest import Manifest
from declip_runtime.plan_builder import BuildOptions, build_plan
from declip_runtime.plan_check import check
from declip_runtime.scorer import Scorer
from declip_runtime.signature import Range, Signature, TensorSpec

from . import fake_nvidia, tiny_engine, tiny_generator
from .fake_nvidia import Nvidia
from .tiny_generator import MANIFEST, SIGNATURES, compute, inputs

CPU = [name for name in ("openvino", "onnxruntime") if backends.available()[name] is None]


@pytest.fixture
def engine(tmp_path: Path) -> EngineFile:
    return tiny_generator.write(tmp_path / "dp.engine", fp16=True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvidia]:
    machine = fake_nvidia.install(monkeypatch, Nvidia())
    yield machine
    assert not any(machine.leaks().values())


# --- the manifest and the file


def test_the_manifest_comes_back_as_it_was(engine: EngineFile) -> None:
    again = Manifest.from_json(engine.manifest.to_json())
    assert again == engine.manifest
    assert engine.generator.signatures["unet"].inputs["sample"].shape == ("batch", 4, "height", "width")
    assert engine.generator.main == "unet"


def changed(manifest: Manifest, *path: str, to: Any) -> str:
    data = json.loads(manifest.to_json())
    del data["engine_id"]
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(data)


UNET = ("components", "unet")
LATENTS = {"dtype": "float32", "shape": ["batch", 4, "height", "width"]}
EMBEDDING = {"dtype": "float32", "shape": ["batch", 768]}


@pytest.mark.parametrize(
    ("path", "to", "told"),
    [
        (("kind",), "camera", "unknown kind 'camera', kind is one of 'scorer', 'unet'"),
        (("family",), "flux", "unknown family 'flux'"),
        (("layers",), [], "no cross-attention layer"),
        (("scheduler",), {}, "no _class_name"),
        (("steps",), 0, "1 at least"),
        (("width",), 36, "multiples of 8"),
        (("height",), 4, "at least 8"),
        (("text_inputs",), {}, "each needs its tokenizer"),
        (("graphs", "unet-int4"), "graphs/unet-int4.onnx", "unknown graphs"),
        (("components", "unet", "inputs", "sample", "shape"), [2, 4], "the first axis"),
        (("components", "unet", "inputs", "sample", "shape"), ["batch", 0], "size below 1"),
        (("components", "unet", "inputs", "sample", "shape"), ["batch", "h w"], "no known form"),
        (("components", "unet", "inputs", "sample", "dtype"), "float64", "unknown dtype"),
        (("components", "unet", "inputs", "sample", "shape"), ["batch", 1.5], "a whole number or text"),
        (("components", "unet", "free", "height"), [4, 2, 8], "has the range"),
        (("components", "unet", "free", "depth"), [1, 1, 1], "have the ranges"),
        (("components", "unet", "outputs", "noise", "shape"), ["batch", "depth"], "that no input has"),
        (("components", "unet"), None, "wanted is an object"),
        # What runs the models trusts names, types and axes.
        ((*UNET, "inputs", "other"), {"dtype": "float32", "shape": ["batch"]}, "unet takes .*, other, wanted are"),
        ((*UNET, "outputs"), {"n": LATENTS}, "unet gives n, wanted are noise"),
        (("components", "vae_decoder", "outputs"), {"n": LATENTS}, "vae_decoder gives n, wanted are images"),
        (("components", "image_encoder", "outputs"), {"perceptual": EMBEDDING}, "wanted are identity, percept"),
        ((*UNET, "inputs", "sample", "shape"), ["batch", "height", "width"], r"unet.sample is .*\[batch, L, height, w"),
        ((*UNET, "inputs", "sample", "dtype"), "uint8", r"is uint8 .*, wanted is float32 \[batch, 4, height, width\]"),
        ((*UNET, "inputs", "sample", "shape"), ["batch", 4, "width", "height"], "wanted is .*height, width"),
        ((*UNET, "inputs", "sample", "shape"), ["batch", 4, "8*height", "width"], "multiple of a free dimension"),
        ((*UNET, "outputs", "noise", "shape"), ["batch", 3, "height", "width"], r"noise is .*wanted is .*batch, 4"),
        ((*UNET, "outputs", "noise", "shape"), ["batch", 4, 2, "width"], r"noise is .*wanted is .*height, width"),
        ((*UNET, "inputs", "scale", "shape"), ["batch", "conditions", 2], r"wanted is .*conditions, 3\]"),
        (("components", "image_tokens", "outputs", "tokens", "shape"), ["batch", 768], r"wanted is .*, C\]"),
        (("components", "text_encoder", "inputs", "input_ids", "shape"), ["batch"], r"wanted is int64 \[batch, N\]"),
        (("components", "vae_decoder", "outputs", "images", "shape"), ["batch", "4*height", "8*width", 3], r"8\*hei"),
        (("vae_scale",), 4, r"wanted is float32 \[batch, 4\*height, 4\*width, 3\]"),
        (("embedding_dim",), 10**30, "must be 65536 at most"),
        (("embedding_dim",), 767, r"wanted is float32 \[batch, 767\]"),
        (("preprocess", "size"), 32, r"wanted is uint8 \[batch, 32, 32, 3\]"),
        (("family",), "sdxl", "text_encoder takes input_ids, wanted are input_ids, input_ids_2"),
        (("layers",), ["a", "b"], "scale is .*wanted is"),
        # Sizes that no memory holds.
        ((*UNET, "inputs", "sample", "shape"), ["batch", 10**18, "height", "width"], "size above 65536"),
        ((*UNET, "free", "height"), [1, 4, 10**15], "has the range"),
        ((*UNET, "free", "batch"), [10**9, 10**9, 10**9], "has the range"),
        ((*UNET, "free", "batch"), [65536, 65536, 65536], "values in the smallest sizes"),
        (("height",), 8 * 10**12, "pixels at most"),
        (("steps",), 10**9, "65536 at most"),
        (("guidance",), -5, "guidance is -5"),
        (("text_inputs", "input_ids", "pad_id"), 10**30, "pad_id is"),
        (("text_inputs", "input_ids", "pad_id"), -5, "pad_id is -5"),
        (("text_inputs", "input_ids", "entry"), "unet-fp32.onnx", "not in tokenizers/"),
    ],
)
def test_what_contradicts_itself_is_refused(path: tuple[str, ...], to: Any, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        Manifest.from_json(changed(MANIFEST, *path, to=to))


def test_sizes_may_be_fixed_in_any_component() -> None:
    def fixed(component: str, shapes: dict[str, tuple[int | str, ...]], free: tuple[str, ...]) -> Signature:
        old = SIGNATURES[component]
        inputs, outputs = (
            {name: TensorSpec(spec.dtype, shapes.get(name, spec.shape)) for name, spec in specs.items()}
            for specs in (old.inputs, old.outputs)
        )
        return Signature(inputs, outputs, {name: old.free[name] for name in free})

    latents = ("batch", 4, 4, "width")
    components = {
        **SIGNATURES,
        "vae_decoder": fixed(
            "vae_decoder", {"latents": latents, "images": ("batch", 32, "8*width", 3)}, ("batch", "width")
        ),
        "unet": fixed(
            "unet",
            {"sample": latents, "noise": latents, "scale": ("batch", 1, 3), "image_tokens": ("batch", 1, 2, 384)},
            ("batch", "width"),
        ),
    }
    replace(MANIFEST, components=components)
    wrong = fixed("vae_decoder", {"latents": latents, "images": ("batch", 16, "8*width", 3)}, ("batch", "width"))
    with pytest.raises(ManifestError, match=r"images is .*wanted is float32 \[batch, 32, 8\*width, 3\]"):
        replace(MANIFEST, components={**components, "vae_decoder": wrong})


def test_entries_that_would_be_one_file_are_not_unpacked(engine: EngineFile, tmp_path: Path) -> None:
    entries: dict[str, Content] = {name: engine.read(name) for name in engine.manifest.entries}
    entries["unet-fp32.onnx"] = b""
    odd = write_engine(tmp_path / "odd.engine", replace(engine.manifest, entries={}), entries)
    with pytest.raises(EngineCorruptError, match="would be one file"):
        odd.unpack(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_component_without_its_graph_is_refused() -> None:
    with pytest.raises(ManifestError, match="the unet-fp32 graph is missing"):
        replace(MANIFEST, graphs={n: g for n, g in MANIFEST.graphs.items() if n != "unet-fp32"})


def test_the_id_covers_what_decides_a_picture_and_nothing_else(tmp_path: Path, engine: EngineFile) -> None:
    def written(**changes: Any) -> str:
        return tiny_generator.write(tmp_path / "other.engine", fp16=True, manifest=replace(MANIFEST, **changes)).id

    assert written() == engine.id
    assert written(name="other", steps=4, provenance={"any": "thing"}) == engine.id
    assert written(scheduler={"_class_name": "EulerDiscreteScheduler"}) != engine.id
    assert written(zero_negative=True) != engine.id
    assert written(layers=("a", "b", "c")) != engine.id


def test_each_kind_refuses_the_others_use(engine: EngineFile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"generates pictures and scores none. Use DPAdapter"):
        Scorer(engine.path)
    with pytest.raises(UsageError, match=r"scores photos and generates none. Use Scorer"):
        _ = tiny_engine.write(tmp_path / "scorer.engine").generator
    with pytest.raises(UsageError, match=r"has no component 'vae'. Name one of its components: image_encoder"):
        backends.choose(engine, "fake", component="vae")
    with pytest.raises(UsageError, match="generates pictures"):
        backends.choose(engine, "fake")


def test_unpacked_and_packed_again_it_is_the_same(engine: EngineFile, tmp_path: Path) -> None:
    written = {path.relative_to(tmp_path / "folder").as_posix() for path in engine.unpack(tmp_path / "folder")}
    assert {"unet-fp32.onnx", "vae_decoder-fp16.onnx", "tokenizers/input_ids.json", "weights.bin"} <= written
    again = pack(tmp_path / "folder", tmp_path / "again.engine")
    assert again.id == engine.id
    assert again.manifest == engine.manifest
    again.verify()
    (tmp_path / "folder" / "tokenizers" / "input_ids.json").unlink()
    with pytest.raises(UsageError, match=r"input_ids\.json is missing"):
        pack(tmp_path / "folder", tmp_path / "again.engine")
    (tmp_path / "folder" / "unet-fp32.onnx").unlink()
    with pytest.raises(UsageError, match=r"must hold unet-fp32\.onnx"):
        pack(tmp_path / "folder", tmp_path / "again.engine")


def test_an_altered_tokenizer_is_found(engine: EngineFile) -> None:
    with engine.path.open("r+b") as file:
        file.seek(engine.offset("tokenizers/input_ids.json"))
        file.write(b"[")
    with pytest.raises(EngineCorruptError, match=r"tokenizers/input_ids.json"):
        EngineFile.open(engine.path).read("tokenizers/input_ids.json")


# --- running components


@pytest.mark.parametrize("component", list(SIGNATURES))
@pytest.mark.parametrize("name", CPU)
def test_components_compute_what_their_graphs_say(engine: EngineFile, name: str, component: str) -> None:
    with closing(backends.choose(engine, name, component=component, precision="fp32")) as backend:
        for sizes in ({}, {"batch": 3, "height": 4, "width": 6, "conditions": 1}):
            given = inputs(component, **sizes)
            found = backend.compute(given)
            wanted = compute(component, given)
            assert set(found) == set(wanted)
            for output, values in wanted.items():
                np.testing.assert_allclose(found[output], values, atol=1e-5)


@pytest.mark.parametrize("name", CPU)
def test_inputs_that_may_not_be_written_to_are_read(engine: EngineFile, name: str) -> None:
    with closing(backends.choose(engine, name, component="unet", precision="fp32")) as backend:
        for seed in range(10):
            given = inputs("unet", seed, batch=8, height=8, width=8)
            for array in given.values():
                array.setflags(write=False)
            np.testing.assert_allclose(backend.compute(given)["noise"], compute("unet", given)["noise"], atol=1e-5)


@pytest.mark.parametrize("name", ["fake", *CPU])
def test_nothing_goes_in_and_nothing_comes_out(engine: EngineFile, name: str) -> None:
    with closing(backends.choose(engine, name, component="unet")) as backend:
        assert backend.compute(inputs("unet", batch=0, height=4))["noise"].shape == (0, 4, 4, 2)


def test_the_fake_depends_on_a_rows_inputs_only(engine: EngineFile) -> None:
    backend = backends.choose(engine, "fake", component="unet")
    given = inputs("unet", batch=3)
    first = backend.compute(given)["noise"]
    assert first.shape == given["sample"].shape
    again = backend.compute({name: array[1:] for name, array in given.items()})["noise"]
    np.testing.assert_array_equal(first[1:], again)
    given["timestep"] = given["timestep"] + 1
    assert not np.array_equal(backend.compute(given)["noise"], first)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sample": None}, "this graph takes sample, timestep, text, image_tokens, scale; given are timestep, text, "),
        ({"sample": np.zeros((2, 4, 2, 2))}, r"takes sample as float32 \[batch, 4, height, width\], not float64"),
        ({"sample": np.zeros((2, 3, 2, 2), np.float32)}, r"not float32 \[2, 3, 2, 2\]"),
        ({"timestep": np.zeros(3, np.float32)}, r"takes timestep as float32 \[2\], not float32 \[3\]"),
        ({"timestep": 1.0}, "not float"),
        ({"scale": np.zeros((2, 2, 2), np.float32)}, r"scale as float32 \[2, 2, 3\], not float32 \[2, 2, 2\]"),
        ({"image_tokens": np.zeros((2, 1, 2, 9), np.float32)}, r"as float32 \[2, conditions, tokens, 384\]"),
    ],
)
def test_wrong_inputs_are_named(engine: EngineFile, change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {**inputs("unet"), **change}
    with pytest.raises(InvalidArrayError, match=told):
        backends.choose(engine, "fake", component="unet").compute({n: a for n, a in given.items() if a is not None})


def test_a_size_that_appears_twice_must_be_the_same() -> None:
    square = Signature(
        {"x": TensorSpec("float32", ("batch", "side", "side"))},
        {"y": TensorSpec("float32", ("batch",))},
        {"batch": Range(1, 1, 1), "side": Range(1, 1, 1)},
    )
    assert square.sizes({"x": np.zeros((1, 2, 2), np.float32)}) == {"batch": 1, "side": 2}
    with pytest.raises(InvalidArrayError):
        square.sizes({"x": np.zeros((1, 2, 3), np.float32)})


# --- TensorRT, pretended


@pytest.mark.parametrize("component", list(SIGNATURES))
def test_a_plan_is_built_checked_kept_and_used(
    machine: Nvidia, engine: EngineFile, component: str, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    for _ in range(2):  # the second is the cache's
        with closing(backends.choose(engine, "tensorrt", component=component, cache=cache)) as backend:
            assert backend.precision == "fp16"
            for sizes in ({"batch": 5}, {"batch": 1, "height": 8, "width": 3}, {"batch": 5}, {"batch": 2}):
                given = inputs(component, **sizes)
                for output, values in compute(component, given).items():
                    np.testing.assert_allclose(backend.compute(given)[output], values, atol=1e-5)
    assert len(machine.built) == 1


def test_a_graph_is_captured_for_each_size_and_launched_again(machine: Nvidia, engine: EngineFile) -> None:
    with closing(backends.choose(engine, "tensorrt", component="unet")) as backend:
        machine.events.clear()
        for _ in range(3):
            backend.compute(inputs("unet", height=5))
        assert machine.events.count("launch") == 3
        assert machine.events.count("execute 2") == 2, "once to warm up, once to capture"


def test_only_the_last_sizes_keep_their_graphs(machine: Nvidia, engine: EngineFile) -> None:
    with closing(backends.choose(engine, "tensorrt", component="unet")) as backend:
        for _ in range(2):
            for height in range(2, 9):
                given = inputs("unet", height=height)
                np.testing.assert_allclose(backend.compute(given)["noise"], compute("unet", given)["noise"], atol=1e-5)
            assert machine.graphs == 4


def test_memory_between_layers_is_freed_with_the_last_sizes_that_use_it(machine: Nvidia, engine: EngineFile) -> None:
    with closing(backends.choose(engine, "tensorrt", component="unet")) as backend:
        fixed = machine.used - 2 * machine.activations  # it was made ready for two
        for batch in range(1, 9):
            backend.compute(inputs("unet", batch=batch))
        assert machine.used == fixed + (5 + 6 + 7 + 8) * machine.activations
        for batch in (1, 2, 3, 4):
            backend.compute(inputs("unet", batch=batch))
        assert machine.used == fixed + 6 * machine.activations, "1 has taken the smallest that was enough"


def test_a_size_that_does_not_fit_beside_others_takes_their_place(
    monkeypatch: pytest.MonkeyPatch, engine: EngineFile
) -> None:
    machine = fake_nvidia.install(monkeypatch, Nvidia(activations=10_000_000))
    with closing(backends.choose(engine, "tensorrt", component="unet")) as backend:
        for batch in (1, 3):
            backend.compute(inputs("unet", batch=batch))
        machine.memory = 70_000_000  # 50 are used
        for batch, error in ((6, None), (8, DeviceMemoryError), (5, None)):
            given = inputs("unet", batch=batch)
            with pytest.raises(error, match="too little free memory") if error else nullcontext():
                np.testing.assert_allclose(backend.compute(given)["noise"], compute("unet", given)["noise"], atol=1e-5)
    assert not any(machine.leaks().values())


def test_a_component_that_cannot_be_captured_says_so(monkeypatch: pytest.MonkeyPatch, engine: EngineFile) -> None:
    fake_nvidia.install(monkeypatch, Nvidia(capturable=False))
    with closing(backends.choose(engine, "tensorrt", component="unet")) as backend:
        assert backend.description.endswith("without CUDA graphs")


def test_sizes_beyond_the_plan_are_an_error(machine: Nvidia, engine: EngineFile) -> None:
    with closing(backends.choose(engine, "tensorrt", component="unet")) as backend:
        with pytest.raises(BackendExecutionError, match=r"the plan takes no .*height 9.* Build one that does"):
            backend.compute(inputs("unet", height=9))
        backend.compute(inputs("unet", height=8))


def test_a_plan_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch, engine: EngineFile) -> None:
    fake_nvidia.install(monkeypatch, Nvidia(wrong_by=1.0))
    with pytest.raises(BackendExecutionError, match="noise differs by"):
        backends.choose(engine, "tensorrt", component="unet")


def test_plans_of_components_are_shipped_and_told_apart(machine: Nvidia, engine: EngineFile) -> None:
    before = engine.id
    options = BuildOptions(Range(1, 2, 2), {"height": Range(4, 4, 4), "width": Range(4, 4, 4)})
    built = [build_plan(engine, options, component=name) for name in ("unet", "vae_decoder")]
    engine = add_plans(engine.path, built)
    assert engine.id == before
    assert [plan.sizes["height"] for plan, _ in built] == [Range(4, 4, 4)] * 2
    machine.built.clear()
    for component in ("unet", "vae_decoder"):
        with closing(TensorRTBackend(engine, component=component)) as backend:
            given = inputs(component, height=4, width=4)
            for output, values in compute(component, given).items():
                np.testing.assert_allclose(backend.compute(given)[output], values, atol=1e-5)
            with pytest.raises(BackendExecutionError, match="takes no"):
                backend.compute(inputs(component, height=5, width=4))
    assert not machine.built
    with closing(TensorRTBackend(engine, component="text_encoder")):
        assert len(machine.built) == 1, "the others' plans are not its own"


def test_a_plan_in_the_cache_for_other_sizes_is_not_used(machine: Nvidia, tmp_path: Path) -> None:
    """Sizes are no part of the engine's id: those of both engines are the same."""
    unet, cache = SIGNATURES["unet"], Cache(tmp_path / "cache")
    small = unet.narrowed({"height": Range(2, 2, 4), "width": Range(2, 2, 4)})
    engines = [
        tiny_generator.write(
            tmp_path / f"{number}.engine",
            fp16=True,
            manifest=replace(MANIFEST, components={**SIGNATURES, "unet": signature}),
        )
        for number, signature in enumerate((small, unet))
    ]
    assert engines[0].id == engines[1].id
    for engine, height in zip((*engines, *engines), (4, 8, 4, 8), strict=True):
        with closing(backends.choose(engine, "tensorrt", component="unet", cache=cache)) as backend:
            given = inputs("unet", height=height)
            np.testing.assert_allclose(backend.compute(given)["noise"], compute("unet", given)["noise"], atol=1e-5)
    assert len(machine.built) == 2


def test_a_plan_for_fewer_sizes_is_compared_in_them_and_says_which(machine: Nvidia, engine: EngineFile) -> None:
    options = BuildOptions(Range(4, 6, 8), {"height": Range(4, 4, 6)})
    engine = add_plans(engine.path, [build_plan(engine, options, component="unet")])
    machine.built.clear()
    with closing(TensorRTBackend(engine, component="unet")) as backend:
        free = backend.signature.free
        assert (free["batch"], free["height"]) == (Range(4, 6, 8), Range(4, 4, 6))
        assert free["width"] == SIGNATURES["unet"].free["width"]
        assert check(engine, "fp16", backend.compute, backend.signature, "the plan", "unet") is None
    assert not machine.built


def test_weights_are_hashed_once_and_not_for_a_cache_that_keeps_nothing(
    engine: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "openvino" not in CPU:
        pytest.skip("OpenVINO is not installed")
    read: list[str] = []
    chunks = EngineFile.chunks

    def noting(self: EngineFile, entry: str) -> Iterator[bytes]:
        read.append(entry)
        return chunks(self, entry)

    monkeypatch.setattr(EngineFile, "chunks", noting)
    expected = {"limit": 0, "times": 0}, {"limit": None, "times": 1}
    for number, case in enumerate(expected):
        read.clear()
        for component in SIGNATURES:
            cache = Cache(tmp_path / str(number), case["limit"])
            backends.choose(engine, "openvino", component=component, cache=cache).close()
        assert read.count("weights.bin") == case["times"]


def test_what_a_generator_lacks_is_told_with_what_it_has(machine: Nvidia, engine: EngineFile) -> None:
    with pytest.raises(PrecisionError, match=r"Engines that generate have no int8 graphs: use precision fp16 or fp32"):
        backends.resolve(engine, "tensorrt", component="unet", precision="int8")
    with pytest.raises(UsageError, match=r"Use DPAdapter or declip generate, or name one of its components: image_enc"):
        backends.resolve(engine, "fake")
    backend = backends.choose(engine, "fake", component="unet")
    backend.close()
    with pytest.raises(ScorerStateError, match="Make a new Scorer or DPAdapter"):
        backend.compute(inputs("unet"))


def test_a_range_of_what_is_not_free_is_refused(machine: Nvidia, engine: EngineFile) -> None:
    with pytest.raises(UsageError, match="depth is no free dimension of this graph; free are batch, height"):
        build_plan(engine, BuildOptions(sizes={"depth": Range(1, 1, 1)}), component="unet")
