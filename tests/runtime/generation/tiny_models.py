"""Random Stable Diffusions of a few thousand weights: diffusers' pipeline, and the same models as components."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch import nn

from declip_runtime.generator_manifest import GeneratorManifest, TextInput
from declip_runtime.manifest import Preprocess
from declip_runtime.signature import Range, Signature, TensorSpec
from declip_training.model.torchvision_ops import ensure_importable

ensure_importable()

import diffusers  # noqa: E402
import transformers  # noqa: E402
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel  # noqa: E402

diffusers.utils.logging.set_verbosity(logging.CRITICAL)
transformers.utils.logging.set_verbosity(logging.CRITICAL)
diffusers.utils.logging.disable_progress_bar()

Arrays = Mapping[str, npt.NDArray[Any]]
Family = Literal["sd", "sdxl"]

IMAGE, DIM, TOKENS, TEXT, HIDDEN, LATENT, VAE_SCALE = 16, 12, 4, 77, 32, 4, 2
WORDS = ["a", "red", "house", "dog", "of", "by", "the", "sea", "blurry", "photo"]
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "clip_sample": False,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Models:
    """A base model, an adapter, and what an engine of them would say and hold."""

    pipeline: Any
    adapter: dict[str, dict[str, torch.Tensor]]
    manifest: GeneratorManifest
    components: Mapping[str, Callable[[Arrays], Arrays]]
    files: Mapping[str, bytes]

    def with_adapters(self, count: int) -> Any:
        """diffusers' pipeline with the adapter loaded ``count`` times; 0 is the base model."""
        pipeline = copy.copy(self.pipeline)
        if count:
            unet = copy.deepcopy(self.pipeline.unet)
            unet._load_ip_adapter_weights([copy.deepcopy(self.adapter) for _ in range(count)], low_cpu_mem_usage=False)
            pipeline.register_modules(unet=unet.eval())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def make(family: Family, seed: int = 0) -> Models:
    torch.manual_seed(seed)
    tokens = tokenizer("<|endoftext|>"), tokenizer("!")
    count = 1 if family == "sd" else 2
    encoders = [_text_encoder(tokens[number], projected=number == 1) for number in range(count)]
    unet, vae = _unet(HIDDEN * count, family), _vae()
    scheduler = diffusers.PNDMScheduler.from_config(SCHEDULER)
    if family == "sd":
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=encoders[0], tokenizer=tokens[0], unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    else:
        pipeline = StableDiffusionXLPipeline(
            vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=tokens[0], tokenizer_2=tokens[1],
            unet=unet, scheduler=scheduler, add_watermarker=False, force_zeros_for_empty_prompt=True,
        )  # fmt: skip
    adapter = _adapter(unet, HIDDEN * count)
    names = [f"input_ids{suffix}" for suffix in ("", "_2")[:count]]
    files = {f"tokenizers/{n}.json": t.backend_tokenizer.to_str().encode() for n, t in zip(names, tokens, strict=False)}
    layers = _layers(unet)
    manifest = GeneratorManifest(
        name=f"tiny-{family}",
        graphs={f"{name}-fp32": f"graphs/{name}-fp32.onnx" for name in SIGNATURES(family, len(layers))},
        family=family,
        components=SIGNATURES(family, len(layers)),
        preprocess=Preprocess(IMAGE),
        embedding_dim=DIM,
        layers=layers,
        text_inputs={
            name: TextInput(f"tokenizers/{name}.json", token.pad_token_id)
            for name, token in zip(names, tokens, strict=False)
        },
        scheduler=SCHEDULER,
        height=32,
        width=32,
        steps=4,
        guidance=5.0,
        vae_scale=VAE_SCALE,
        zero_negative=family == "sdxl",
    )
    return Models(pipeline, adapter, manifest, _components(family, encoders, unet, vae, adapter, layers), files)


def tokenizer(pad: str) -> Any:
    """CLIP's kind of tokenizer, with the few words of these tests."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, *(c + "</w>" for c in alphabet)])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = ["".join(pair)]
            vocabulary.setdefault(parts[0], len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=TEXT)


def SIGNATURES(family: Family, layers: int) -> dict[str, Signature]:  # noqa: N802
    def spec(dtype: Any, *shape: int | str) -> TensorSpec:
        return TensorSpec(dtype, ("batch", *shape))

    width = HIDDEN * (1 if family == "sd" else 2)
    xl = family == "sdxl"
    batch, side = {"batch": Range(1, 4, 8)}, {"height": Range(8, 16, 32), "width": Range(8, 16, 32)}
    ids = {"input_ids": spec("int64", TEXT), **({"input_ids_2": spec("int64", TEXT)} if xl else {})}
    pooled = {"pooled": spec("float32", HIDDEN)} if xl else {}
    return {
        "image_encoder": Signature(
            {"images": spec("uint8", IMAGE, IMAGE, 3)},
            {name: spec("float32", DIM) for name in ("identity", "perceptual", "semantic")},
            batch,
        ),
        "image_tokens": Signature(
            {"embeddings": spec("float32", DIM)}, {"tokens": spec("float32", TOKENS, width)}, batch
        ),
        "text_encoder": Signature(ids, {"hidden": spec("float32", TEXT, width), **pooled}, batch),
        "unet": Signature(
            {
                "sample": spec("float32", LATENT, "height", "width"),
                "timestep": spec("float32"),
                "text": spec("float32", TEXT, width),
                "image_tokens": spec("float32", "conditions", "tokens", width),
                "scale": spec("float32", "conditions", layers),
                **({**pooled, "time_ids": spec("float32", 6)} if xl else {}),
            },
            {"noise": spec("float32", LATENT, "height", "width")},
            {**batch, **side, "conditions": Range(1, 1, 3), "tokens": Range(TOKENS, TOKENS, 6 * TOKENS)},
        ),
        "vae_decoder": Signature(
            {"latents": spec("float32", LATENT, "height", "width")},
            {"images": spec("float32", f"{VAE_SCALE}*height", f"{VAE_SCALE}*width", 3)},
            {"batch": Range(1, 1, 4), **side},
        ),
    }


# --- the models


def _text_encoder(tokens: Any, *, projected: bool) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=HIDDEN, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=HIDDEN, max_position_embeddings=TEXT, bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def _unet(width: int, family: Family) -> Any:
    more = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + HIDDEN, "transformer_layers_per_block": (1, 2),
    } if family == "sdxl" else {}  # fmt: skip
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=2, sample_size=16, in_channels=LATENT, out_channels=LATENT,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4, norm_num_groups=8, **more,
    ).eval()  # fmt: skip


def _vae() -> Any:
    return AutoencoderKL(
        block_out_channels=(16, 16), in_channels=3, out_channels=3, latent_channels=LATENT, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def _layers(unet: Any) -> tuple[str, ...]:
    return tuple(name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor"))


def _adapter(unet: Any, width: int) -> dict[str, dict[str, torch.Tensor]]:
    """As an IP-Adapter's file holds it. Large values, so that images count."""
    weights = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in ("k", "v"):
                weights[f"{number}.to_{kind}_ip.weight"] = torch.randn(inner, width) / 4
    projection = {
        "proj.weight": torch.randn(TOKENS * width, DIM), "proj.bias": torch.randn(TOKENS * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    return {"image_proj": projection, "ip_adapter": weights}


# --- the models as components


class _Attention:
    """Cross-attention whose image tokens and strengths are told from outside, written plainly: B, G and n by loops."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, layer: int, told: dict[str, torch.Tensor]) -> None:
        self.key, self.value, self.layer, self.told = key, value, layer, told

    def __call__(self, attn: Any, x: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        query = attn.to_q(x)
        rows = []
        for row in range(len(x)):
            text = encoder_hidden_states[row]
            out = self.attend(attn.heads, query[row], attn.to_k(text), attn.to_v(text))
            strengths = self.told["scale"][row, :, self.layer]
            for tokens, scale in zip(self.told["image_tokens"][row], strengths, strict=True):
                out = out + scale * self.attend(attn.heads, query[row], tokens @ self.key.T, tokens @ self.value.T)
            rows.append(out)
        result: torch.Tensor = attn.to_out[0](torch.stack(rows))
        return result

    @staticmethod
    def attend(heads: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.reshape(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        return (weights @ v).transpose(0, 1).flatten(1)


def _components(
    family: Family,
    encoders: Sequence[Any],
    base: Any,
    vae: Any,
    adapter: Mapping[str, Mapping[str, torch.Tensor]],
    layers: Sequence[str],
) -> dict[str, Callable[[Arrays], Arrays]]:
    unet, told = copy.deepcopy(base), {}
    numbers = {name: number for number, name in enumerate(base.attn_processors)}
    processors = dict(unet.attn_processors)
    for layer, name in enumerate(layers):
        key, value = (adapter["ip_adapter"][f"{numbers[f'{name}.processor']}.to_{k}_ip.weight"] for k in "kv")
        processors[f"{name}.processor"] = _Attention(key, value, layer, told)
    unet.set_attn_processor(processors)
    heads = [nn.Linear(IMAGE * 3, DIM) for _ in range(3)]

    def image_encoder(images: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = images.float().mean(dim=1).flatten(1) / 64.0 - 2.0
        return {name: head(rows) for name, head in zip(("identity", "perceptual", "semantic"), heads, strict=True)}

    def image_tokens(embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        p = adapter["image_proj"]
        tokens = (embeddings @ p["proj.weight"].T + p["proj.bias"]).unflatten(1, (TOKENS, -1))
        return {"tokens": nn.functional.layer_norm(tokens, tokens.shape[-1:], p["norm.weight"], p["norm.bias"])}

    def text_encoder(input_ids: torch.Tensor, input_ids_2: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if input_ids_2 is None:
            return {"hidden": encoders[0](input_ids)[0]}
        found = [e(i, output_hidden_states=True) for e, i in zip(encoders, (input_ids, input_ids_2), strict=True)]
        return {"hidden": torch.cat([f.hidden_states[-2] for f in found], dim=-1), "pooled": found[1].text_embeds}

    def denoise(sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, **more: torch.Tensor) -> Any:
        told.update(more)
        added = {"text_embeds": more["pooled"], "time_ids": more["time_ids"]} if family == "sdxl" else None
        return {"noise": unet(sample, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample}

    def vae_decoder(latents: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = vae.decode(latents / vae.config.scaling_factor).sample
        return {"images": (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)}

    functions = (image_encoder, image_tokens, text_encoder, denoise, vae_decoder)
    return {n: _on_arrays(f) for n, f in zip(SIGNATURES(family, len(layers)), functions, strict=True)}


def _on_arrays(function: Callable[..., Mapping[str, torch.Tensor]]) -> Callable[[Arrays], Arrays]:
    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = function(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run
