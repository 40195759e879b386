"""Every torch module that is exported against diffusers, transformers and open_clip, whose weights it shares."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from declip_export.generator.adapter import attach, load_adapter
from declip_export.generator.base import Base
from declip_export.generator.components import Component, components_of
from declip_export.generator.feeds import TEXTS, text_feeds
from declip_export.generator.layers import Sinusoid
from declip_export.generator.library import library
from declip_export.generator.text import ExportText, TextTower
from declip_export.generator.unet import ExportUNet, cross_attention_layers
from declip_export.generator.vae import ExportDecoder
from declip_export.photos import sample_images
from declip_runtime.errors import ExportError
from declip_training.model.checkpoint import load_projectors
from declip_training.model.tower import load_clip

from . import tiny
from .conftest import FAMILIES, Loaded, Tiny, load

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def components(loaded: Loaded) -> dict[str, Component]:
    return {c.name: c for c in components_of(loaded.base, loaded.adapter, loaded.embedder)}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def close(found: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= limit * float(wanted.abs().max())


# --- texts, pictures, latents


def test_text_states_are_those_of_the_pipeline(loaded: Loaded) -> None:
    base = loaded.base
    ids = [torch.from_numpy(ids) for ids in text_feeds(base).values()]
    found = components(loaded)["text_encoder"].module(*ids)
    given: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    wanted = base.pipeline.encode_prompt(list(TEXTS), **given)
    if base.family == "sd":
        close(found, wanted[0])
    else:
        close(found[0], wanted[0])
        close(found[1], wanted[2])


@pytest.mark.parametrize("end", [2, 700])
def test_the_end_of_text_is_found_as_transformers_finds_it(end: int) -> None:
    """Ids 2 and the highest in older configurations, where 2 stands for the highest; the first of several ends."""
    model = tiny.text_encoder(701, projected=True, eos_token_id=end)
    ids = torch.full((3, tiny.LENGTH), 700)
    ids[0, :5] = torch.tensor([699, 5, 2, 2, 9])
    ids[1, :-1] = 7
    ids[2] = torch.arange(tiny.LENGTH)
    ids[2, 30] = 700
    tower = TextTower(model)
    states = tower.norm(tower.through(tower.embed(ids), 0, len(tower.blocks)))
    close(tower.pool(ids, states), model(ids)[0])


def test_a_text_encoder_that_masks_padding_is_refused() -> None:
    with pytest.raises(ExportError, match="told what is padding"):
        ExportText(tiny.text_encoder(100, use_attention_mask=True))


def test_image_tokens_are_the_adapters(loaded: Loaded) -> None:
    projection = loaded.base.pipeline.unet.encoder_hid_proj
    embeddings = torch.cat([torch.zeros(1, tiny.EMBEDDING), random(4, tiny.EMBEDDING)])
    close(components(loaded)["image_tokens"].module(embeddings), projection([embeddings[:, None]])[0][:, 0])


def test_image_embeddings_are_those_of_tower_and_projectors(models: Tiny, loaded: Loaded) -> None:
    clip, _, preprocess = load_clip(str(models.tower), "random")
    images = torch.from_numpy(sample_images(preprocess.size, 5))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    embedded = clip.visual((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)  # type: ignore[operator]
    projectors = load_projectors(models.projectors)
    identity, perceptual, semantic = components(loaded)["image_encoder"].module(images)
    close(identity, embedded)
    close(perceptual, projectors.perceptual(embedded))
    close(semantic, projectors.semantic(embedded))
    assert float((perceptual - semantic).abs().max()) > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]},
        {"use_post_quant_conv": False},
        {"mid_block_add_attention": False},
    ],
)
def test_pixels_are_those_of_the_pipeline(tmp_path: Any, changes: dict[str, Any]) -> None:
    vae = tiny.vae(**changes)
    pipeline = tiny.pipeline(tmp_path, sdxl=True, vae=vae)
    latents = random(2, 4, 8, 16)
    mean = torch.tensor(changes.get("latents_mean", [0.0] * 4)).view(1, 4, 1, 1)
    std = torch.tensor(changes.get("latents_std", [1.0] * 4)).view(1, 4, 1, 1)
    decoded = vae.decode(latents * std / vae.config.scaling_factor + mean, return_dict=False)[0]
    wanted = torch.from_numpy(pipeline.image_processor.postprocess(decoded, output_type="np"))
    found = ExportDecoder(vae)(latents)
    assert found.shape == (2, 64, 128, 3)
    close(found, wanted)
    assert 0.01 < float((found == 0).float().mean() + (found == 1).float().mean()) < 0.9, "clamping is seen"


# --- the UNet


def unet_call(base: Base, embeddings: list[torch.Tensor], timestep: int = 500) -> tuple[Any, dict[str, torch.Tensor]]:
    """diffusers' noise for two pictures, and the inputs of ours; ``embeddings`` [2, N, D] a condition."""
    unet = base.pipeline.unet
    sample, text = random(2, 4, 8, 12), random(2, tiny.LENGTH, unet.config.cross_attention_dim)
    added: dict[str, Any] = {"image_embeds": embeddings}
    feeds = {"sample": sample, "timestep": torch.full((2,), float(timestep)), "text": text}
    if base.family == "sdxl":
        feeds |= {"pooled": random(2, tiny.POOLED), "time_ids": torch.tensor([[64.0, 96, 3, 0, 64, 96]] * 2)}
        added |= {"text_embeds": feeds["pooled"], "time_ids": feeds["time_ids"]}
    noise = unet(sample, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
    tokens = [tokens.flatten(1, 2) for tokens in unet.encoder_hid_proj(embeddings)]
    return noise, {**feeds, "image_tokens": torch.stack(tokens, 1)}


def scale_of(base: Base) -> torch.Tensor:
    """[2, conditions, layers] as diffusers' processors hold it."""
    unet = base.pipeline.unet
    strengths = [unet.get_submodule(layer).processor.scale for layer in cross_attention_layers(unet)]
    return torch.tensor(strengths).T.expand(2, -1, -1)


BY_BLOCK = {
    "sd": {"down": {"block_0": [0.3, 1.1]}, "up": {"block_1": [0.0, 1.0, 0.5]}},
    "sdxl": {"mid": 0.4, "down": {"block_1": [1.0, 0.0]}, "up": {"block_0": [0.2, 0.9, 0.0]}},
}


@pytest.mark.parametrize("kind", ["one", "by block", "none", "negative"])
def test_noise_with_a_strength(loaded: Loaded, kind: str) -> None:
    base = loaded.base
    scale: Any = {"one": 0.7, "by block": BY_BLOCK[base.family], "none": 0.0, "negative": -0.5}[kind]
    base.pipeline.set_ip_adapter_scale(scale)
    wanted, feeds = unet_call(base, [random(2, 1, tiny.EMBEDDING)])
    module = components(loaded)["unet"].module
    close(module(**feeds, scale=scale_of(base)), wanted)
    if kind == "none":
        shuffled = {**feeds, "image_tokens": random(2, 3, 8, feeds["image_tokens"].shape[-1])}
        close(module(**shuffled, scale=torch.zeros(2, 3, scale_of(base).shape[-1])), wanted)
    else:
        other = module(**feeds, scale=scale_of(base) + 0.2)
        assert float((other - wanted).abs().max()) > 1e-3 * float(wanted.abs().max()), "strength is seen"


@pytest.mark.parametrize("family", FAMILIES)
def test_two_conditions_are_the_adapter_loaded_twice(models: Tiny, family: Any) -> None:
    loaded = load(models, family)
    base = loaded.base
    module = components(loaded)["unet"].module
    attach(loaded.adapter, base, 2)
    base.pipeline.set_ip_adapter_scale([0.8, BY_BLOCK[family]])
    wanted, feeds = unet_call(base, [random(2, 2, tiny.EMBEDDING), random(2, 2, tiny.EMBEDDING)])
    found = module(**feeds, scale=scale_of(base))
    close(found, wanted)
    swapped = {**feeds, "image_tokens": feeds["image_tokens"].flip(1)}
    close(module(**swapped, scale=scale_of(base).flip(1)), wanted)
    assert float((module(**swapped, scale=scale_of(base)) - wanted).abs().max()) > 1e-3


def test_several_pictures_share_a_softmax_and_repeating_them_changes_nothing(loaded: Loaded) -> None:
    base = loaded.base
    base.pipeline.set_ip_adapter_scale(0.9)
    pictures = random(2, 2, tiny.EMBEDDING)
    wanted, feeds = unet_call(base, [pictures])
    module = components(loaded)["unet"].module
    close(module(**feeds, scale=scale_of(base)), wanted)
    repeated = {**feeds, "image_tokens": feeds["image_tokens"].repeat(1, 1, 3, 1)}
    close(module(**repeated, scale=scale_of(base)), wanted)


def test_layers_are_named_and_ordered_as_diffusers_does(loaded: Loaded) -> None:
    """One layer's strength moves what that layer's processor moves."""
    base = loaded.base
    unet = base.pipeline.unet
    module: Any = components(loaded)["unet"].module
    assert [f"{layer}.processor" for layer in module.layers] == [n for n in unet.attn_processors if "attn2" in n]
    for i, layer in enumerate(module.layers):
        base.pipeline.set_ip_adapter_scale(0.0)
        unet.get_submodule(layer).processor.scale = [1.0]
        wanted, feeds = unet_call(base, [random(2, 1, tiny.EMBEDDING)])
        close(module(**feeds, scale=torch.eye(len(module.layers))[i].expand(2, 1, -1)), wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_linear_projection": True, "upcast_attention": True},
        {"mid_block_type": None},
        {"transformer_layers_per_block": 2, "attention_head_dim": (2, 4)},
        {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "flip_sin_to_cos": False, "freq_shift": 1},
    ],
)
def test_other_unets_of_the_family(models: Tiny, tmp_path: Any, changes: dict[str, Any]) -> None:
    unet = tiny.unet(**changes)
    base = Base(tiny.pipeline(tmp_path, unet=unet), "sd", "changed")
    load_adapter(tiny.save_adapter(tiny.adapter_state(unet), tmp_path / "adapter.bin"), base)
    base.pipeline.set_ip_adapter_scale(0.7)
    wanted, feeds = unet_call(base, [random(2, 1, tiny.EMBEDDING)], timestep=981)
    close(ExportUNet(unet)(**feeds, scale=scale_of(base)), wanted)


REFUSED = {
    "time_cond_proj_dim": ({"time_cond_proj_dim": 8}, "guidance as an input"),
    "class embedding": ({"class_embed_type": "timestep"}, "class_embed_type"),
    "classes": ({"num_class_embeds": 4}, "num_class_embeds"),
    "inpainting": ({"in_channels": 9}, "takes 9 channels and gives 4"),
    "projected texts": ({"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
    "gligen": ({"attention_type": "gated"}, "attention_type"),
    "scale shift": ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
    "other blocks": (
        {"down_block_types": ("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D")},
        "ResnetDownsampleBlock2D",
    ),
    "other middle": ({"mid_block_type": "UNetMidBlock2D"}, "UNetMidBlock2D"),
    "no adapter": ({}, "no IP-Adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unets_that_compute_something_else_are_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        ExportUNet(tiny.unet(**changes))


def test_quantized_or_adapted_layers_are_refused(models: Tiny) -> None:
    loaded = load(models, "sd")
    attention = loaded.base.pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attention.to_q = torch.nn.Sequential(attention.to_q)
    with pytest.raises(ExportError, match="neither quantized"):
        ExportUNet(loaded.base.pipeline.unet)


def test_nothing_is_changed(loaded: Loaded) -> None:
    before = {n: t.clone() for n, t in loaded.base.pipeline.unet.state_dict().items()}
    modules = [type(m) for m in loaded.base.pipeline.unet.modules()]
    components(loaded)
    assert [type(m) for m in loaded.base.pipeline.unet.modules()] == modules
    assert all(torch.equal(before[n], t) for n, t in loaded.base.pipeline.unet.state_dict().items())


@pytest.mark.parametrize(
    ("channels", "flip", "shift", "scale"), [(320, True, 0, 1), (16, False, 1, 1), (64, True, 0.5, 2)]
)
def test_sinusoids(channels: int, flip: bool, shift: float, scale: int) -> None:
    """Of whole timesteps, of fractions between them, and of sizes of pictures."""
    source = library("diffusers.models.embeddings").Timesteps(channels, flip, shift, scale)
    numbers = torch.cat(
        [torch.arange(1000.0), 999 * torch.rand(500, generator=GENERATOR), torch.tensor([1024.0, 4096, 8191])]
    )
    exact = copy.deepcopy(source)(numbers.double())  # still FP32 inside, so not better than 1e-4
    assert float((Sinusoid(source)(numbers) - exact).abs().max()) < 2e-3
    frequencies = scale * np.exp(-np.log(10000) * np.arange(channels // 2) / (channels // 2 - shift))
    angles = numbers.double().numpy()[:, None] * frequencies
    waves = [np.cos(angles), np.sin(angles)] if flip else [np.sin(angles), np.cos(angles)]
    assert np.abs(Sinusoid(source)(numbers).numpy() - np.concatenate(waves, 1)).max() < 2e-5 * scale
