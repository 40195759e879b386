"""What OpenVINO executes: attention as one fused layer, and no leftovers of the export around it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# Which of them OpenVINO takes depends on the CPU's instruction set; both hold the softmax.
FUSED_ATTENTION = {"Subgraph", "ScaledDotProductAttention"}


def executed(exported: Any, family: str, folder: Path, precision: str = "f32") -> list[Any]:
    import openvino

    exported(family).unpack(folder)
    compiled = openvino.Core().compile_model(str(folder / "fp32.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return list(compiled.get_runtime_model().get_ordered_ops())


def kind(operation: Any) -> str:
    return str(operation.get_rt_info()["layerType"].astype(str))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize(("family", "blocks"), [("vit", 2), ("vit-quickgelu", 2), ("vit-average", 2), ("timm-vit", 6)])
def test_attention_is_fused(exported: Any, family: str, blocks: int, precision: str, tmp_path: Path) -> None:
    operations = executed(exported, family, tmp_path, precision)
    kinds = Counter(kind(o) for o in operations)
    assert "Softmax" not in kinds, kinds
    fused = [o for o in operations if kind(o) in FUSED_ATTENTION]
    names = [str(o.get_rt_info()["originalLayersNames"].astype(str)).lower() for o in fused]
    attention = [n for o, n in zip(fused, names, strict=True) if "softmax" in n or kind(o) != "Subgraph"]
    assert len(attention) == blocks, names
    assert all(n.count("matmul") + n.count("product") >= 2 for n in attention if "softmax" in n), "its two products too"


@pytest.mark.parametrize("family", ["vit", "vit-quickgelu", "vit-average"])
@pytest.mark.parametrize("graph", ["fp32", "fp16"])
def test_attention_is_scaled_before_its_product(exported: Any, family: str, graph: str, tmp_path: Path) -> None:
    """TensorRT fuses attention where Q or K is scaled and the product goes straight into the softmax."""
    import onnx

    exported(family).unpack(tmp_path)
    nodes = onnx.load(str(tmp_path / f"{graph}.onnx"), load_external_data=False).graph.node
    made_by = {name: node for node in nodes for name in node.output}

    def source(name: str, through: tuple[str, ...]) -> Any:
        node = made_by[name]
        return source(node.input[0], through) if node.op_type in through else node

    softmaxes = [node for node in nodes if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    for softmax in softmaxes:
        product = source(softmax.input[0], ("Cast",))
        assert product.op_type == "MatMul"
        for operand in product.input:
            assert source(operand, ("Transpose", "Cast")).op_type == "Mul"


def test_the_head_stays_fp32_where_openvino_computes_in_bf16(exported: Any, tmp_path: Path) -> None:
    operations = executed(exported, "vit", tmp_path, "bf16")
    last_product = max(i for i, o in enumerate(operations) if kind(o) in ("FullyConnected", "MatMul"))
    head = [o for o in operations[last_product:] if kind(o) in ("Eltwise", "Reduce", "Output")]
    assert len(head) >= 6
    assert {str(o.get_rt_info()["runtimePrecision"].astype(str)) for o in head} == {"f32"}
