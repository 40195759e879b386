"""What quantization must know of a tower: how large the inputs of its layers get on real photos.

INT8 has one step for all values, so activations get the clipping that loses least in the mean square, and before that
channels of a LayerNorm's output that are much larger than the others are scaled down and the next weights up
(SmoothQuant, arXiv 2211.10438), because one scale must serve all channels. FP8 has steps that grow with the value:
nothing is clipped and nothing smoothed.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from declip_runtime.errors import UsageError

from .graph import EngineGraph
from .onnx_graph import Array
from .quantize import INT8, Format
from .vit import Block, Linear

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


def calibrate(engine: EngineGraph, images: Array, form: Format = INT8) -> dict[str, float]:
    """Largest representable input of every layer that ``form`` quantizes, by the name of its weight in the graph.

    ``images`` uint8 [N, S, S, 3]: photos as ``prepare`` gives them, 8 at least. Raises UsageError for fewer, and for a
    tower that has no such layer.
    """
    if len(images) < _MINIMUM_IMAGES:
        named = form.name.upper()
        raise UsageError(f"{len(images)} photos cannot calibrate {named}. Give {_MINIMUM_IMAGES} or more, better 100.")
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

    kinds = (Linear, nn.Linear, nn.Conv2d) if "Conv" in form.operators else (Linear, nn.Linear)
    layers = {f"tower.{n}": m for n, m in engine.tower.named_modules() if isinstance(m, kinds)}
    _run(engine, images, [watch(name, module) for name, module in layers.items()])
    if not peaks:  # in a convolutional tower; attention pools call no layer of theirs
        raise UsageError(f"this tower has no layer that {form.name.upper()} would speed up. Leave it out.")
    if form.floating:
        return {f"{name}.weight": peak for name, peak in peaks.items()}
    return {f"{name}.weight": _best_clip(np.concatenate(samples[name]), peaks[name]) for name in samples}


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
        scale = limit / INT8.largest
        return float(np.mean((np.clip(np.round(values / scale), 0, INT8.largest) * scale - values) ** 2))

    return min((float(share * peak) for share in _CLIPS), key=error)
