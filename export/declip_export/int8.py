"""INT8 copy of a graph as QuantizeLinear / DequantizeLinear pairs, calibrated with real photos.

Symmetric throughout, which is what OpenVINO, ONNX Runtime and TensorRT all compute: weights per output channel,
activations per tensor with the clipping that loses least in the mean square. The inputs of a tower's matrix products
and convolutions are quantized; attention's own two products, normalisations, projectors and the head stay as they are.
Before that, channels of a LayerNorm's output that are much larger than the others are scaled down and the next
weights up (SmoothQuant, arXiv 2211.10438), because one scale must serve all channels.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor, nn

from declip_runtime.errors import UsageError

from .graph import EngineGraph
from .onnx_graph import Array, OnnxGraph
from .vit import Block, Linear

_LEVELS = 127
_SMOOTHING = 0.5  # the paper's migration strength
_CLIPS = np.linspace(0.4, 1.0, 16)  # tried shares of an activation's largest value
_SAMPLES = 50_000  # values of an activation that judge them
_BATCH = 8
_MINIMUM_IMAGES = 8


def smoothed(engine: EngineGraph, images: Array) -> EngineGraph:
    """``engine`` or a copy that computes the same, with the outliers of its LayerNorms moved into the weights."""
    if not any(isinstance(m, Block) for m in engine.tower.modules()):
        return engine
    engine = copy.deepcopy(engine)
    blocks = [m for m in engine.tower.modules() if isinstance(m, Block)]
    pairs = [(b.ln_1, [b.attention.q, b.attention.k, b.attention.v]) for b in blocks]
    pairs += [(b.ln_2, [b.up]) for b in blocks]
    largest: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        peak = output.abs().flatten(0, -2).amax(0)
        largest[module] = torch.maximum(largest[module], peak) if module in largest else peak

    _run(engine, images, [norm.register_forward_hook(record) for norm, _ in pairs])
    with torch.no_grad():
        for norm, consumers in pairs:
            weight = torch.stack([c.weight.abs().amax(1) for c in consumers]).amax(0)
            scale = (
                largest[norm].clamp_min(1e-5) ** _SMOOTHING / weight.clamp_min(1e-5) ** (1 - _SMOOTHING)
            ).clamp_min(1e-3)
            for parameter in norm.parameters():
                parameter.div_(scale)
            for consumer in consumers:
                consumer.weight.mul_(scale[:, None])
    return engine


def calibrate(engine: EngineGraph, images: Array) -> dict[str, float]:
    """Largest representable input of every quantizable layer, by the name of its weight in the graph.

    ``images`` uint8 [N, S, S, 3]: photos as ``prepare`` gives them, 8 at least. Raises UsageError for fewer.
    """
    if len(images) < _MINIMUM_IMAGES:
        raise UsageError(f"{len(images)} photos cannot calibrate INT8. Give {_MINIMUM_IMAGES} or more, better 100.")
    samples: dict[str, list[Array]] = {}
    peaks: dict[str, float] = {}
    per_call = max(1, _SAMPLES * _BATCH // len(images))

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().abs().flatten()
            # The same choice for every layer: those that share an input get the same range, and share its rounding.
            chosen = torch.randint(0, len(values), (per_call,), generator=torch.Generator().manual_seed(0))
            samples.setdefault(name, []).append(values[chosen].numpy())
            peaks[name] = max(peaks.get(name, 0.0), float(values.max()))

        return module.register_forward_pre_hook(record)

    layers = {f"tower.{n}": m for n, m in engine.tower.named_modules() if isinstance(m, Linear | nn.Linear | nn.Conv2d)}
    _run(engine, images, [watch(name, module) for name, module in layers.items()])
    return {f"{name}.weight": _best_clip(np.concatenate(samples[name]), peaks[name]) for name in samples}


def to_int8(graph: OnnxGraph, ranges: dict[str, float]) -> OnnxGraph:
    """``graph`` with the layers in ``ranges`` quantized; their FP32 weights leave it."""
    result = graph.copy()
    result.nodes = []
    quantized: dict[tuple[str, float], str] = {}
    for node in graph.copy().nodes:
        weight = node.input[1] if node.op_type in ("MatMul", "Gemm", "Conv") else ""
        if weight in ranges and ranges[weight] > 0:
            key = (node.input[0], ranges[weight])
            if key not in quantized:
                quantized[key] = _quantize_activation(result, *key)
            node.input[0] = quantized[key]
            node.input[1] = _quantize_weight(result, node)
        result.nodes.append(node)
    result.prune()
    return result


def _run(engine: EngineGraph, images: Array, hooks: list[torch.utils.hooks.RemovableHandle]) -> None:
    try:
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                engine(torch.from_numpy(images[start : start + _BATCH]))
    finally:
        for hook in hooks:
            hook.remove()


def _best_clip(values: Array, peak: float) -> float:
    """The range in 0.4..1 of ``peak`` whose rounding and clipping together err least in the mean square."""
    if peak == 0:
        return 0.0

    def error(limit: float) -> float:
        scale = limit / _LEVELS
        return float(np.mean((np.clip(np.round(values / scale), 0, _LEVELS) * scale - values) ** 2))

    return min((float(share * peak) for share in _CLIPS), key=error)


def _quantize_activation(graph: OnnxGraph, name: str, limit: float) -> str:
    scale, zero, int8, float32 = (f"{name}.{part}" for part in ("scale", "zero", "int8", "dequantized"))
    graph.constants[scale] = np.array(limit / _LEVELS, np.float32)
    graph.constants[zero] = np.array(0, np.int8)
    graph.nodes += [
        helper.make_node("QuantizeLinear", [name, scale, zero], [int8], f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [int8, scale, zero], [float32], f"{name}.dequantize"),
    ]
    graph.types |= {int8: TensorProto.INT8, float32: TensorProto.FLOAT}
    return float32


def _quantize_weight(graph: OnnxGraph, node: NodeProto) -> str:
    name = node.input[1]
    int8, scale, zero, float32 = (f"{name}.{part}" for part in ("int8", "scale", "zero", "dequantized"))
    if int8 not in graph.constants:
        array = graph.constants[name]
        axis = 1 if node.op_type == "MatMul" or not _is_transposed(node) else 0
        others = tuple(i for i in range(array.ndim) if i != axis)
        scales = np.maximum(np.abs(array).max(others, keepdims=True), np.finfo(np.float32).tiny) / _LEVELS
        graph.constants[int8] = np.clip(np.round(array / scales), -_LEVELS, _LEVELS).astype(np.int8)
        graph.constants[scale] = scales.astype(np.float32).reshape(-1)
        graph.constants[zero] = np.zeros(scales.size, np.int8)
        graph.nodes.append(
            helper.make_node("DequantizeLinear", [int8, scale, zero], [float32], f"{name}.dequantize", axis=axis)
        )
        graph.types[float32] = TensorProto.FLOAT
    return float32


def _is_transposed(node: NodeProto) -> bool:
    """Whether output channels come first: a convolution, or a Gemm with transB."""
    return node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
