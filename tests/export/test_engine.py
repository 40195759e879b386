"""What an exported engine file holds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from runtime.fake_nvidia import Nvidia

from declip_export import parity
from declip_export.engine import export_engine
from declip_export.graph import EngineGraph
from declip_export.weights import ALIGNMENT, WeightStore
from declip_runtime import onnx_head
from declip_runtime.backends import choose
from declip_runtime.cache import Cache
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendUnavailableError, ExportError, PrecisionError, UsageError
from declip_runtime.manifest import License
from runtime import fake_nvidia


def test_graphs_share_fp16_weights(small: Any, exported: Any) -> None:
    engine: EngineFile = exported("vit")
    tensors = {name: onnx_head.tensors(engine.read(entry)) for name, entry in engine.manifest.graphs.items()}
    places = {name: {(t.offset, t.length, t.dtype) for t in found} for name, found in tensors.items()}
    assert places["fp32"] == places["fp16"]
    stored = {t.dtype for t in tensors["fp32"]}
    assert stored <= {"float16"}
    assert all(t.offset % ALIGNMENT == 0 for t in tensors["fp32"])
    model = small("vit")
    parameters = sum(p.numel() for p in EngineGraph(model.declip, model.preprocess, semantic=True).parameters())
    assert engine.manifest.entries["weights.bin"].size < 2.1 * parameters


def test_fp16_graph_computes_in_fp16_with_fp32_islands(exported: Any, tmp_path: Path) -> None:
    exported("vit").unpack(tmp_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "fp16.onnx")), strict_mode=True)
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    by_type: dict[str, set[int]] = {}
    for node in model.graph.node:
        if node.op_type != "Cast":
            by_type.setdefault(node.op_type, set()).update(types[n] for n in node.output if n)
    assert by_type["LayerNormalization"] == by_type["Softmax"] == by_type["ReduceL2"] == {TensorProto.FLOAT}
    products = [types[n.output[0]] for n in model.graph.node if n.op_type in ("MatMul", "Gemm")]
    assert products == [TensorProto.FLOAT16] * len(products)
    assert len(products) >= 18
    for name in ("raw_perceptual", "raw_semantic"):
        assert types[name] == TensorProto.FLOAT16, "the head begins after the projectors"
    head = [n for n in model.graph.node if n.op_type in ("Sigmoid", "ReduceSum") and types[n.output[0]] != 10]
    assert len(head) == 3, "cosine with the prompts, softmax of each pair, mean over pairs"


def test_fp32_storage(small: Any, exported: Any, tmp_path: Path) -> None:
    engine = small("vit").export(tmp_path / "vit.engine", weights_dtype="float32")
    assert engine.manifest.weights_dtype == "float32"
    half = exported("vit").manifest.entries["weights.bin"].size
    assert engine.manifest.entries["weights.bin"].size > 1.9 * half
    assert {t.dtype for t in onnx_head.tensors(engine.read("graphs/fp16.onnx"))} == {"float32"}


def test_store_writes_equal_values_once_and_keeps_what_fp16_would_lose(tmp_path: Path) -> None:
    exact, fine = np.arange(300, dtype=np.float32), np.full(300, 0.1, np.float32)
    with WeightStore(tmp_path / "w", "float16") as store:
        assert store.place(exact) == (np.dtype(np.float16), 0, 600)
        assert store.place(fine)[0] == np.float32
        assert store.place(exact.copy()) == (np.dtype(np.float16), 0, 600)
        assert store.place(np.full(300, 1e6, np.float32))[0] == np.float32
    data = (tmp_path / "w").read_bytes()
    np.testing.assert_array_equal(np.frombuffer(data, np.float16, 300), exact)


def test_weights_beyond_fp16_are_named(small: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(small("vit"))
    with torch.no_grad():
        model.declip.visual.transformer.resblocks[1].mlp.c_fc.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"tower\.blocks\.1\.up\.weight does not fit FP16.*--weights float32"):
        model.export(tmp_path / "x.engine")
    model.export(tmp_path / "x.engine", weights_dtype="float32")


def test_manifest_provenance_parity_and_progress(small: Any, tmp_path: Path) -> None:
    model, stages = small("vit"), []
    engine = model.export(
        tmp_path / "named.engine",
        name="my-model",
        license=License("MIT"),
        provenance={"tower": "vit"},
        parity_images=model.images(4),
        progress=stages.append,
    )
    manifest = EngineFile.open(engine.path).manifest
    assert manifest.name == "my-model"
    assert manifest.license == License("MIT")
    assert manifest.score_names == ("quality", "brightness")
    assert manifest.provenance["tower"] == "vit"
    assert set(manifest.provenance["versions"]) == {"torch", "onnx"}
    assert {r["bar"] for r in manifest.provenance["parity"]} == {"exact", "half", None}
    assert manifest.provenance["range_audit"]["fp16"]["images"] == 4
    assert manifest.provenance["range_audit"]["fp16"]["kept_fp32"] == []
    assert manifest.logit_scale == 20.0
    assert manifest.has_semantic
    assert len(stages) >= 5
    assert [p.name for p in tmp_path.iterdir()] == ["named.engine"], "the draft and the traced weights are gone"
    engine.verify()


def test_an_export_builds_no_plans_where_tensorrt_is(small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Minutes of an uncached build, or its failure, are not what whoever exports asked for."""
    machine = fake_nvidia.install(monkeypatch, Nvidia())
    model = small("vit")
    engine = model.export(tmp_path / "x.engine", parity_images=model.images(4))
    assert not machine.built
    subjects = " ".join(row["subject"] for row in engine.manifest.provenance["parity"])
    assert "OpenVINO" in subjects
    assert "CPUExecutionProvider" in subjects
    assert "fp16 graph, emulated" in subjects
    assert "TensorRT" not in subjects


def test_parity_of_a_backend_that_is_named(small: Any, exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Stood in for by OpenVINO, which says that it is another."""
    asked: list[tuple[str, str | None, str, Cache | None]] = []

    def standing_in(engine: EngineFile, name: str, *, device: str | None, precision: str, cache: Cache | None) -> Any:
        asked.append((name, device, precision, cache))
        if name != "tensorrt":
            return choose(engine, name, device=device, precision=precision, cache=cache)
        if precision == "bf16":
            raise PrecisionError("no plans in bf16")
        backend = choose(engine, "openvino", precision="fp32")
        backend.description = f"TensorRT, {precision}"
        return backend

    monkeypatch.setattr(parity, "choose", standing_in)
    model, cache = small("vit"), Cache(tmp_path)
    rows = parity.measure_parity(
        model.declip, exported("vit"), model.images(4), parity.Named("tensorrt", "cuda:0", cache)
    )
    bars = {row.subject: row.bar for row in rows if row.subject.startswith("TensorRT")}
    assert bars == {f"TensorRT, {p}": bar for p, bar in
                    {"fp32": "exact", "fp16": "half", "int8": "coarse", "fp8": "coarse"}.items()}  # fmt: skip
    assert {(name, device, kept) for name, device, _, kept in asked} == {
        ("openvino", "cpu", None),
        ("onnxruntime", "cpu", None),
        ("tensorrt", "cuda:0", cache),
    }
    monkeypatch.undo()
    fake_nvidia.install(monkeypatch, Nvidia())
    with pytest.raises(BackendUnavailableError, match="there is no GPU 7"):
        parity.measure_parity(model.declip, exported("vit"), model.images(4), parity.Named("tensorrt", "cuda:7"))


def test_the_parity_command_wants_a_backend_for_its_device(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parity.main(["--tower", "ViT-B-32", "--device", "cuda"])
    assert "Name the backend too" in capsys.readouterr().err


def test_the_model_is_not_changed(small: Any, tmp_path: Path) -> None:
    model = small("timm-resnet")
    before = copy.deepcopy(model.declip.state_dict())
    model.export(tmp_path / "x.engine")
    after = model.declip.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_export_is_reproducible(small: Any, exported: Any, tmp_path: Path) -> None:
    assert small("vit").export(tmp_path / "again.engine").id == exported("vit").id


def test_wrong_number_of_scores_and_missing_folder(small: Any, tmp_path: Path) -> None:
    model = small("vit")
    with pytest.raises(UsageError, match="has 2 scores, 1 are described"):
        export_engine(model.declip, model.preprocess, model.specs[:1], tmp_path / "x.engine")
    with pytest.raises(UsageError, match="does not exist"):
        model.export(tmp_path / "no" / "x.engine")


def test_another_size_than_the_towers_is_refused(small: Any, tmp_path: Path) -> None:
    model = small("vit")
    with pytest.raises(ExportError, match=r"takes \(48, 48\) pixels, not 64"):
        replace(model, preprocess=replace(model.preprocess, size=64)).export(tmp_path / "x.engine")
