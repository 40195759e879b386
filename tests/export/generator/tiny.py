"""Tiny Stable Diffusions with random weights everywhere, in every form that is loaded: folders, adapters, LoRAs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from declip_export.generator.library import library, quiet

TEXT_WIDTH = 32
POOLED = 24
EMBEDDING = 32
LENGTH = 77
VOCABULARY = 524
_MERGES = ["p h", "ph o", "o t", "a n", "i n", "t h", "th e</w>", "a</w>", "o f</w>", "pho t", "phot o</w>"]


def randomize(module: nn.Module, seed: int, gain: float = 1.0) -> Any:
    """Nothing stays zero or one: what an export left out would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(gain * noise * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise)
    return module.eval()


def unet(*, sdxl: bool = False, linear: bool | None = None, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "use_linear_projection": sdxl if linear is None else linear,
    }
    if sdxl:
        options |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "cross_attention_dim": 2 * TEXT_WIDTH,
            "attention_head_dim": (2, 4),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": POOLED + 6 * 8,
        }
    return randomize(library("diffusers").UNet2DConditionModel(**{**options, **changes}), 1)


def vae(**changes: Any) -> Any:
    options: dict[str, Any] = {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "sample_size": 128,
        "scaling_factor": 0.18215,
    }
    return randomize(library("diffusers").AutoencoderKL(**{**options, **changes}), 2)


def text_encoder(vocabulary: int, *, projected: bool = False, **changes: Any) -> Any:
    transformers = library("transformers")
    config = transformers.CLIPTextConfig(
        **{
            "vocab_size": vocabulary,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
            "hidden_act": "gelu" if projected else "quick_gelu",
            "projection_dim": POOLED,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            **changes,
        }
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomize(kind(config), 4 if projected else 3)


def tokenizer(folder: Path, padding: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer that knows single bytes and a few merges."""
    symbols = [chr(i) for first, end in ((33, 127), (161, 173), (174, 324)) for i in range(first, end)]
    merged = [merge.replace(" ", "") for merge in _MERGES if " " in merge]
    words = [*symbols, *(s + "</w>" for s in symbols), *merged, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(m for m in _MERGES if " " in m)])
    (folder / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    settings = {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer", "pad_token": padding}
    settings |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return library("transformers").CLIPTokenizer.from_pretrained(folder)


def pipeline(folder: Path, *, sdxl: bool = False, **parts: Any) -> Any:
    """A whole pipeline; ``parts`` replace some of it."""
    diffusers = library("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler if sdxl else diffusers.DDIMScheduler
    first = tokenizer(folder / "tokenizer-source")
    modules = {
        "unet": unet(sdxl=sdxl),
        "vae": vae(),
        "tokenizer": first,
        "text_encoder": text_encoder(len(first)),
        "scheduler": scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
    }
    with quiet():
        if sdxl:
            second = tokenizer(folder / "tokenizer-source-2", padding="!")
            modules |= {"tokenizer_2": second, "text_encoder_2": text_encoder(len(second), projected=True)}
            return diffusers.StableDiffusionXLPipeline(**{**modules, **parts})
        modules |= {"safety_checker": None, "feature_extractor": None}
        return diffusers.StableDiffusionPipeline(**{**modules, **parts}, requires_safety_checker=False)


def adapter_state(model: Any, embedding: int = EMBEDDING, tokens: int = 4) -> dict[str, dict[str, Tensor]]:
    """A random adapter for ``model``, a UNet, in the layout of the published ones."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    width = model.config.cross_attention_dim
    layers: dict[str, Tensor] = {}
    for i, name in enumerate(model.attn_processors):
        if name.endswith("attn2.processor"):
            rows = model.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            layers |= {f"{i}.to_k_ip.weight": random(rows, width), f"{i}.to_v_ip.weight": random(rows, width)}
    projection = {
        "proj.weight": random(tokens * width, embedding),
        "proj.bias": 0.1 * random(tokens * width),
        "norm.weight": 1 + 0.2 * random(width),
        "norm.bias": 0.1 * random(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def save_adapter(state: dict[str, dict[str, Tensor]], path: Path) -> Path:
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file({f"{part}.{n}": t.contiguous() for part, tensors in state.items() for n, t in tensors.items()}, path)
    else:
        torch.save(state, path)
    return path


def save_lora(model: Any, path: Path, rank: int = 2) -> Path:
    """A random LoRA of the UNet's attention, as diffusers saves them."""
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(6), {}
    for name, module in model.named_modules():
        if name.endswith(("to_q", "to_v", "to_out.0")):
            rows, columns = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.5
    save_file(tensors, path)
    return path
