"""Stable Diffusion 1.5 at full size with random weights, and an IP-Adapter for it: for speed and memory only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from declip_export.generator.library import library, quiet
from declip_training.model.torchvision_ops import ensure_importable

EMBEDDING = 1024
"""Width of ViT-H-14's embeddings, which SD 1.5's adapters take."""

_TOKENS = 4
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


def write_random_sd15(folder: Path) -> tuple[Path, Path]:
    """Write a diffusers folder (FP16, 2.1 GB) and an adapter's file below ``folder``; returns both places."""
    ensure_importable()
    diffusers, transformers = library("diffusers"), library("transformers")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**_TEXT))
        adapter = _adapter(unet)
    finally:
        torch.set_default_dtype(torch.float32)
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=_tokenizer(folder / "tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet():
        pipeline.save_pretrained(folder / "base")
    torch.save(adapter, folder / "ip-adapter.bin")
    return folder / "base", folder / "ip-adapter.bin"


def _adapter(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Weights in the official layout: keys and values for every cross-attention layer, numbered 1, 3, 5, ..."""
    layers: dict[str, torch.Tensor] = {}
    for number, name in enumerate(name for name in unet.attn_processors if "attn2" in name):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = torch.randn(width, 768) * 768**-0.5
    projection = {
        "proj.weight": torch.randn(_TOKENS * 768, EMBEDDING) * EMBEDDING**-0.5,
        "proj.bias": torch.zeros(_TOKENS * 768),
        "norm.weight": torch.ones(768),
        "norm.bias": torch.zeros(768),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def _tokenizer(folder: Path) -> Any:
    """CLIP's two special words and single letters: as many tokens as ever, since all are padded to 77."""
    folder.mkdir(parents=True)
    letters = [letter + end for letter in map(chr, range(33, 127)) for end in ("", "</w>")]
    vocabulary = {word: number for number, word in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return library("transformers").CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )
