"""What diffusers itself computes, for the same inputs as the graphs: the cases that parity is measured with.

Weights may be held in FP16, as an engine stores them; diffusers then computes in FP32 from weights that are converted
while their layer runs, so that a full-size model needs no second copy in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from declip_export.onnx_graph import Array
from declip_export.photos import sample_images
from declip_export.weights import StorageDtype

from .adapter import Adapter, attach
from .base import Base
from .embedder import Embedder
from .feeds import clean_latents, noisy_latents, text_feeds
from .library import quiet
from .unet import cross_attention_layers

Scale = float | dict[str, Any]
"""As diffusers' ``set_ip_adapter_scale`` takes it for one adapter."""

_CONVERTED_WHOLE = ("ImageProjection",)  # it asks for its layer's type before that layer runs
_EMBEDDINGS = ("identity", "perceptual", "semantic")
_IMAGES = 4


@dataclass(frozen=True)
class Case:
    """One call of a component: inputs and what they must give, by name."""

    component: str
    name: str
    feeds: Mapping[str, Array]
    wanted: Mapping[str, Array]


@contextmanager
def computing_in_fp32(module: nn.Module, storage: StorageDtype) -> Iterator[None]:
    """Layers of ``module`` compute in FP32 meanwhile, from their weights as ``storage`` keeps them."""
    hooks = []
    for part in module.modules():
        whole = type(part).__name__ in _CONVERTED_WHOLE
        if whole or any(p is not None for p in part._parameters.values()):
            converting = _Converting([*part.modules()] if whole else [part], storage)
            hooks.append(part.register_forward_pre_hook(converting.begin))
            # The last to begin is the first to end, or it would put back what another one had put there.
            hooks.append(part.register_forward_hook(converting.end, always_call=True, prepend=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Converting:
    """Puts FP32 parameters in the place of some modules' own while these run."""

    def __init__(self, modules: list[nn.Module], storage: StorageDtype) -> None:
        self._modules, self._storage = modules, storage
        self._own: list[list[tuple[dict[str, Any], dict[str, Any]]]] = []  # of nested calls

    def begin(self, *_: object) -> None:
        self._own.append([(module._parameters, dict(module._parameters)) for module in self._modules])
        for table, own in self._own[-1]:
            table.update({n: p if p is None else self._converted(p) for n, p in own.items()})

    def end(self, *_: object) -> None:
        for table, own in self._own.pop():
            table.update(own)

    def _converted(self, parameter: Tensor) -> nn.Parameter:
        if self._storage == "float16":
            parameter = parameter.half()
        return nn.Parameter(parameter.detach().float(), requires_grad=False)


@torch.no_grad()
def reference_cases(
    base: Base, adapter: Adapter, embedder: Embedder, storage: StorageDtype, size: tuple[int, int]
) -> list[Case]:
    """Cases of every component; ``size`` is of the latents, which need not be those that the engine is for."""
    unet, vae = base.pipeline.unet, base.pipeline.vae
    texts = _text_case(base, storage)
    images = sample_images(embedder.preprocess.size, _IMAGES)
    with computing_in_fp32(embedder.encoder, storage):
        embedded = dict(zip(_EMBEDDINGS, embedder.encoder(torch.from_numpy(images)), strict=True))
    embeddings = torch.cat([torch.zeros(1, embedder.dim), embedded["perceptual"], embedded["semantic"]])
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    with computing_in_fp32(projection, storage):
        tokens = projection(embeddings)
    rng = np.random.default_rng(1)
    latents = torch.from_numpy(clean_latents(2, unet.config.in_channels, *size, rng))
    with computing_in_fp32(vae, storage):
        pixels = _decoded(vae, latents)
    cases = [
        texts,
        Case("image_encoder", "synthetic pictures", {"images": images}, {n: e.numpy() for n, e in embedded.items()}),
        Case("image_tokens", "embeddings and zeros", {"embeddings": embeddings.numpy()}, {"tokens": tokens.numpy()}),
        Case("vae_decoder", "latents", {"latents": latents.numpy()}, {"images": pixels.numpy()}),
    ]
    return cases + _unet_cases(base, adapter, texts, embeddings, size, storage)


def _text_case(base: Base, storage: StorageDtype) -> Case:
    feeds = text_feeds(base)
    pipeline = base.pipeline
    ids = {name: torch.from_numpy(array) for name, array in feeds.items()}
    with computing_in_fp32(pipeline.text_encoder, storage):
        if base.family == "sd":
            hidden = pipeline.text_encoder(ids["input_ids"])[0]
            return Case("text_encoder", "four texts", feeds, {"hidden": hidden.numpy()})
        first = pipeline.text_encoder(ids["input_ids"], output_hidden_states=True).hidden_states[-2]
    with computing_in_fp32(pipeline.text_encoder_2, storage):
        second = pipeline.text_encoder_2(ids["input_ids_2"], output_hidden_states=True)
    wanted = {"hidden": torch.cat([first, second.hidden_states[-2]], -1).numpy(), "pooled": second[0].numpy()}
    return Case("text_encoder", "four texts", feeds, wanted)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """As the pipelines do it."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        latents = latents * torch.tensor(std).view(1, -1, 1, 1) / vae.config.scaling_factor
        latents = latents + torch.tensor(mean).view(1, -1, 1, 1)
    else:
        latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    decoded: Tensor = vae.decode(latents, return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def _unet_cases(
    base: Base, adapter: Adapter, texts: Case, embeddings: Tensor, size: tuple[int, int], storage: StorageDtype
) -> list[Case]:
    """One strength, strengths by block, and two conditions of two pictures each; these load the adapter twice."""
    blocks = _by_block(base.pipeline.unet)
    one, two = embeddings[1:2], embeddings[2:4]
    cases = [
        unet_case(base, "one strength", texts, [one], [0.7], size, 601, storage),
        unet_case(base, "strengths by block", texts, [one], [blocks], size, 21, storage),
    ]
    attach(adapter, base, 2)
    try:
        pair = [two, embeddings[-2:]]
        cases.append(unet_case(base, "two conditions of two pictures", texts, pair, [0.9, blocks], size, 901, storage))
    finally:
        attach(adapter, base, 1)
    return cases


@torch.no_grad()
def unet_case(
    base: Base,
    name: str,
    texts: Case,
    conditions: list[Tensor],
    scales: list[Scale],
    size: tuple[int, int],
    timestep: int,
    storage: StorageDtype,
) -> Case:
    """What the UNet of diffusers makes of a guided step with ``conditions``, embeddings [N, D] of N pictures each.

    The adapter must have been attached as often as there are conditions.
    """
    pipeline = base.pipeline
    unet, rng = pipeline.unet, np.random.default_rng(timestep)
    pipeline.set_ip_adapter_scale(scales)
    sample = noisy_latents(clean_latents(1, unet.config.in_channels, *size, rng), timestep, rng)
    feeds: dict[str, Array] = {
        "sample": np.concatenate([sample, sample]),
        "timestep": np.full(2, timestep, np.float32),
        "text": texts.wanted["hidden"][[0, 1]],
    }
    guided = [torch.stack([torch.zeros_like(c), c]) for c in conditions]  # [2, N, D], without pictures first
    added: dict[str, Any] = {"image_embeds": guided}
    if base.family == "sdxl":
        pixels = [8.0 * s for s in size]
        feeds["pooled"] = texts.wanted["pooled"][[0, 1]]
        feeds["time_ids"] = np.tile(np.array([*pixels, 0, 0, *pixels], np.float32), (2, 1))
        added |= {"text_embeds": torch.from_numpy(feeds["pooled"]), "time_ids": torch.from_numpy(feeds["time_ids"])}
    with quiet(), computing_in_fp32(unet, storage):
        noise = unet(
            torch.from_numpy(feeds["sample"]),
            torch.tensor(timestep),
            encoder_hidden_states=torch.from_numpy(feeds["text"]),
            added_cond_kwargs=added,
        ).sample
        tokens = [t.flatten(1, 2) for t in unet.encoder_hid_proj(guided)]
    feeds["image_tokens"] = torch.stack(tokens, 1).numpy()
    layers = [unet.get_submodule(layer).processor.scale for layer in cross_attention_layers(unet)]
    feeds["scale"] = np.tile(np.asarray(layers, np.float32).T, (2, 1, 1))
    return Case("unet", name, feeds, {"noise": noise.numpy()})


def _by_block(unet: Any) -> Scale:
    """Strengths as InstantStyle sets them: nothing but one layer of the first up block that looks at pictures."""
    index = next(i for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions"))
    layers = len(unet.up_blocks[index].attentions)
    return {"up": {f"block_{index}": [float(i == 1 % layers) for i in range(layers)]}}
