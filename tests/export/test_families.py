"""Every family of towers: the exported graph computes what the model does, in torch and on each backend."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from declip_export.graph import EngineGraph
from declip_export.parity import measure_parity, require_parity
from declip_export.vit import ExportViT
from declip_runtime.errors import ExportError

from .conftest import FAMILIES, REWRITTEN


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_equals_model_and_projectors_are_not_identities(small: Any, family: str) -> None:
    model = small(family)
    graph = EngineGraph(model.declip, model.preprocess, semantic=True)
    assert isinstance(graph.tower, ExportViT) == (family in REWRITTEN)
    images = torch.from_numpy(model.images(6))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
    normalised = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        wanted = model.declip(normalised)
        found = graph(images)
        plain = torch.nn.functional.normalize(model.declip.visual(normalised), dim=-1)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    assert (wanted.perceptual * plain).sum(1).max() < 0.98
    assert (wanted.semantic * plain).sum(1).max() < 0.98
    assert wanted.scores.std(0).max() > 1e-3, "scores must depend on the image, or parity proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_with_torch(small: Any, exported: Any, family: str) -> None:
    model, engine = small(family), exported(family)
    rows = measure_parity(model.declip, engine, model.images())
    require_parity(rows)
    exact = [row.subject for row in rows if row.bar == "exact"]
    assert any("OpenVINO" in subject for subject in exact)
    assert any("ONNX Runtime" in subject for subject in exact)
    assert [row.subject for row in rows if row.bar == "half"] == ["fp16 graph, emulated"]


def test_fp32_storage_is_exact_against_the_model_itself(small: Any, tmp_path: Any) -> None:
    model = small("vit")
    engine = model.export(tmp_path / "vit.engine", weights_dtype="float32")
    rows = measure_parity(model.declip, engine, model.images())
    assert not any("storage" in row.subject for row in rows)
    require_parity(rows)


def test_parity_notices_a_wrong_engine(small: Any, exported: Any) -> None:
    rows = measure_parity(small("vit-quickgelu").declip, exported("vit"), small("vit").images())
    with pytest.raises(ExportError, match="differs from torch"):
        require_parity(rows)


@pytest.mark.parametrize("family", ["vit", "timm-vit", "timm-resnet"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_form(exported: Any, family: str, precision: str, tmp_path: Any) -> None:
    exported(family).unpack(tmp_path)
    model = onnx.load(str(tmp_path / f"{precision}.onnx"), load_external_data=False)
    consumers = [n for n in model.graph.node if "images" in n.input]
    assert [n.op_type for n in consumers] == ["Cast"], "TensorRT takes uint8 straight into a Cast only"
    image = model.graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert image.shape.dim[0].dim_param
    assert [d.dim_value for d in image.shape.dim][1:] == [exported(family).manifest.preprocess.size] * 2 + [3]
    assert [o.name for o in model.graph.output] == ["scores", "perceptual", "semantic"]
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {onnx.TensorProto.FLOAT}
    assert {n.domain for n in model.graph.node} == {""}, "vendor operators never reach TensorRT"
    constants = {t.name for t in model.graph.initializer}
    assert not any(n.op_type == "Transpose" and n.input[0] in constants for n in model.graph.node)
    assert not any(n.metadata_props for n in model.graph.node)
    assert model.ByteSize() < 100_000


def test_batch_is_free(exported: Any, small: Any) -> None:
    from declip_runtime.backends import choose

    backend = choose(exported("vit"), "openvino", precision="fp32")
    images = small("vit").images(7)
    together = backend.run(images).scores
    alone = np.concatenate([backend.run(images[i : i + 1]).scores for i in range(7)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_tower_that_open_clip_cannot_run(small: Any) -> None:
    model = small("timm-resnet")
    broken = copy.deepcopy(model.declip)
    broken.visual.head = torch.nn.Linear(3, 32)
    with pytest.raises(ExportError, match="does not run on 64 x 64 images"):
        EngineGraph(broken, model.preprocess)
