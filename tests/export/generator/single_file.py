"""A pipeline as the one file that Stable Diffusion's training code writes, for the tiny architecture of these tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def as_single_file(pipeline: Any, path: Path) -> Path:
    from safetensors.torch import save_file

    tensors = {f"model.diffusion_model.{n}": t for n, t in _unet(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{n}": t for n, t in _vae(pipeline.vae).items()}
    prefix = "cond_stage_model.transformer.text_model."
    text = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    tensors |= {prefix + n.removeprefix("text_model."): t for n, t in text.state_dict().items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    return path


def _renamed(module: Any, prefix: str, names: dict[str, str] | None = None) -> dict[str, Tensor]:
    found = {}
    for name, tensor in module.state_dict().items():
        head, _, rest = name.partition(".")
        found[f"{prefix}.{(names or {}).get(head, head)}.{rest}" if rest else f"{prefix}.{name}"] = tensor
    return found


def _unet(unet: Any) -> dict[str, Tensor]:
    found = _renamed(unet.conv_in, "input_blocks.0.0")
    found |= _renamed(unet.time_embedding, "time_embed", {"linear_1": "0", "linear_2": "2"})
    number = 1
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            found |= _renamed(resnet, f"input_blocks.{number}.0", _RESNET)
            if hasattr(block, "attentions"):
                found |= _renamed(block.attentions[i], f"input_blocks.{number}.1")
            number += 1
        if block.downsamplers is not None:
            found |= _renamed(block.downsamplers[0].conv, f"input_blocks.{number}.0.op")
            number += 1
    found |= _renamed(unet.mid_block.resnets[0], "middle_block.0", _RESNET)
    found |= _renamed(unet.mid_block.attentions[0], "middle_block.1")
    found |= _renamed(unet.mid_block.resnets[1], "middle_block.2", _RESNET)
    number = 0
    for block in unet.up_blocks:
        for i, resnet in enumerate(block.resnets):
            found |= _renamed(resnet, f"output_blocks.{number}.0", _RESNET)
            layer = 1
            if hasattr(block, "attentions"):
                found |= _renamed(block.attentions[i], f"output_blocks.{number}.1")
                layer = 2
            if block.upsamplers is not None and i == len(block.resnets) - 1:
                found |= _renamed(block.upsamplers[0].conv, f"output_blocks.{number}.{layer}.conv")
            number += 1
    return found | _renamed(unet.conv_norm_out, "out.0") | _renamed(unet.conv_out, "out.2")


def _vae(vae: Any) -> dict[str, Tensor]:
    found = _renamed(vae.quant_conv, "quant_conv") | _renamed(vae.post_quant_conv, "post_quant_conv")
    for name, side, blocks, attribute in (
        ("encoder", "down", vae.encoder.down_blocks, "downsamplers"),
        ("decoder", "up", [*reversed(vae.decoder.up_blocks)], "upsamplers"),
    ):
        coder = getattr(vae, name)
        found |= _renamed(coder.conv_in, f"{name}.conv_in") | _renamed(coder.conv_out, f"{name}.conv_out")
        found |= _renamed(coder.conv_norm_out, f"{name}.norm_out")
        for i, resnet in enumerate(coder.mid_block.resnets):
            found |= _renamed(resnet, f"{name}.mid.block_{i + 1}", {"conv_shortcut": "nin_shortcut"})
        for key, tensor in coder.mid_block.attentions[0].state_dict().items():
            layer, _, kind = key.rpartition(".")
            new = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}[layer]
            image = kind == "weight" and new != "norm"  # convolutions there
            found[f"{name}.mid.attn_1.{new}.{kind}"] = tensor[:, :, None, None] if image else tensor
        for i, block in enumerate(blocks):
            for j, resnet in enumerate(block.resnets):
                found |= _renamed(resnet, f"{name}.{side}.{i}.block.{j}", {"conv_shortcut": "nin_shortcut"})
            if getattr(block, attribute) is not None:
                found |= _renamed(getattr(block, attribute)[0].conv, f"{name}.{side}.{i}.{side}sample.conv")
    return found
