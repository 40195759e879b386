"""The five models of a generator: the torch module that is exported, and what its graph takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from torch import nn

from declip_runtime.signature import BATCH, Range, Signature, TensorSpec

from .adapter import TOKENS, Adapter
from .base import Base
from .embedder import Embedder, ExportTokens
from .text import ExportText, ExportTwoTexts
from .unet import ExportUNet, ExportUNetXL
from .vae import ExportDecoder

BATCHES = Range(1, 2, 8)
"""Guidance doubles one picture, the commonest call."""
CONDITIONS = Range(1, 1, 3)
IMAGE_TOKENS = Range(TOKENS, TOKENS, 8 * TOKENS)
"""Of up to eight pictures a condition."""

Sizes = Mapping[str, Range]
"""Height and width in latents; the same three times for a size that is fixed."""


@dataclass(frozen=True)
class Component:
    """A model of the generator; heights and widths that it takes are multiples of ``granularity`` latents.

    ``inputs`` and ``outputs`` leave height and width free, however an engine fixes them.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    granularity: int = 1

    def signature(self, sizes: Sizes) -> Signature:
        """What the graph takes and gives in an engine of these ``sizes``."""
        fixed = {name: size.optimum for name, size in sizes.items() if size.minimum == size.maximum}
        inputs, outputs = ({n: _fixed(s, fixed) for n, s in specs.items()} for specs in (self.inputs, self.outputs))
        ranges = {BATCH: BATCHES, "conditions": CONDITIONS, "tokens": IMAGE_TOKENS, **sizes}
        free = frozenset().union(*(spec.free for spec in inputs.values()))
        return Signature(inputs, outputs, {name: ranges[name] for name in ranges if name in free})


def components_of(base: Base, adapter: Adapter, embedder: Embedder) -> tuple[Component, ...]:
    """The models, in an order in which each can be given what earlier ones make.

    Raises ExportError for a base model that computes something else than is known, and for an embedder that does not
    fit the adapter.
    """
    adapter.require_width(embedder.dim, embedder.tower)
    pipeline = base.pipeline
    unet = ExportUNetXL(pipeline.unet) if base.family == "sdxl" else ExportUNet(pipeline.unet)
    decoder = ExportDecoder(pipeline.vae)
    tokens = ExportTokens(pipeline.unet.encoder_hid_proj.image_projection_layers[0])
    channels, text_width = int(pipeline.unet.config.in_channels), base.text_width
    side = embedder.preprocess.size
    image = TensorSpec("uint8", (BATCH, side, side, 3))
    embedding = TensorSpec("float32", (BATCH, embedder.dim))
    latents = TensorSpec("float32", (BATCH, channels, "height", "width"))
    pixels = TensorSpec("float32", (BATCH, f"{decoder.scale}*height", f"{decoder.scale}*width", 3))
    text, text_inputs, text_outputs = _text(base)
    added = {}
    if base.family == "sdxl":
        added = {"pooled": text_outputs["pooled"], "time_ids": TensorSpec("float32", (BATCH, 6))}
    unet_inputs = {
        "sample": latents,
        "timestep": TensorSpec("float32", (BATCH,)),
        "text": text_outputs["hidden"],
        "image_tokens": TensorSpec("float32", (BATCH, "conditions", "tokens", text_width)),
        "scale": TensorSpec("float32", (BATCH, "conditions", len(unet.layers))),
        **added,
    }
    three = dict.fromkeys(("identity", "perceptual", "semantic"), embedding)
    made = {"tokens": TensorSpec("float32", (BATCH, TOKENS, text_width))}
    return (
        Component("text_encoder", text, text_inputs, text_outputs),
        Component("image_encoder", embedder.encoder, {"images": image}, three),
        Component("image_tokens", tokens, {"embeddings": embedding}, made),
        Component("vae_decoder", decoder, {"latents": latents}, {"images": pixels}),
        Component("unet", unet, unet_inputs, {"noise": latents}, unet.granularity),
    )


def fix_sizes(head: bytes, signature: Signature) -> bytes:
    """The ONNX ``head`` with inputs and outputs of the sizes that ``signature`` fixes, and its names of free ones."""
    model = onnx.load_from_string(head)
    for values, specs in ((model.graph.input, signature.inputs), (model.graph.output, signature.outputs)):
        for value in values:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in specs[value.name].shape:
                shape.dim.add(**{"dim_value" if isinstance(size, int) else "dim_param": size})
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _text(base: Base) -> tuple[nn.Module, dict[str, TensorSpec], dict[str, TensorSpec]]:
    pipeline = base.pipeline
    if base.family == "sdxl":
        two = ExportTwoTexts(pipeline.text_encoder, pipeline.text_encoder_2)
        length = two.second.length
        ids = TensorSpec("int64", (BATCH, length))
        hidden = TensorSpec("float32", (BATCH, length, two.first.width + two.second.width))
        pooled = TensorSpec("float32", (BATCH, two.second.pooled_width))
        return two, {"input_ids": ids, "input_ids_2": ids}, {"hidden": hidden, "pooled": pooled}
    one = ExportText(pipeline.text_encoder)
    ids = TensorSpec("int64", (BATCH, one.tower.length))
    return one, {"input_ids": ids}, {"hidden": TensorSpec("float32", (BATCH, one.tower.length, one.tower.width))}


def _fixed(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    shape: list[int | str] = []
    for size in spec.shape:
        factor, _, name = str(size).rpartition("*")
        shape.append(int(factor or 1) * sizes[name] if isinstance(size, str) and name in sizes else size)
    return TensorSpec(spec.dtype, tuple(shape))
