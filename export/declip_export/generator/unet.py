"""diffusers' UNet2DConditionModel written for execution: same weights, same result, image strength as an input."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from declip_runtime.errors import ExportError

from .attention import CrossAttention, SelfAttention
from .layers import Downsample, Linear, Mlp, ResBlock, Sinusoid, Upsample, picture_of, require_class, tokens_of

_PROCESSOR = ".attn2.processor"
# What may stand in the configuration; anything else computes something that ExportUNet does not.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "time_cond_proj_dim": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "ip_image_proj"),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "only_cross_attention": (False,),
    "center_input_sample": (False,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "class_embeddings_concat": (False,),
}
_FIXES = {
    "time_cond_proj_dim": "It takes the guidance as an input (LCM). Use its base model with the LCM-LoRA fused.",
    "encoder_hid_dim_type": "It projects its text states. Give a Stable Diffusion 1.x, 2.x or XL.",
}
_OTHERWISE = "Give a Stable Diffusion 1.x, 2.x or XL."


class Transformer(nn.Module):
    """x [B, C, H, W] -> the same through transformer blocks over H * W tokens, beside a shortcut."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require_class(source, "Transformer2DModel")
        self.norm: nn.Module = source.norm
        self.linear = bool(source.use_linear_projection)
        self.proj_in, self.proj_out = (
            Linear.of(proj) if self.linear else proj for proj in (source.proj_in, source.proj_out)
        )
        self.blocks = nn.ModuleList(Block(block) for block in source.transformer_blocks)

    def forward(self, x: Tensor, text: Tensor, images: Tensor, scales: list[Tensor]) -> Tensor:
        """``scales`` has [B, G] for each block."""
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = tokens_of(h)
        if self.linear:
            h = self.proj_in(h)
        for block, scale in zip(self.blocks, scales, strict=True):
            h = block(h, text, images, scale)
        if self.linear:
            h = self.proj_out(h)
        h = picture_of(h, x)
        return x + (h if self.linear else self.proj_out(h))


class Block(nn.Module):
    """Self attention, cross attention and a gated layer, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require_class(source, "BasicTransformerBlock")
        if source.norm_type != "layer_norm" or source.pos_embed is not None or source.attn2 is None:
            raise ExportError(f"a transformer block of the UNet has {source.norm_type} or no text. {_OTHERWISE}")
        gate, _, down = source.ff.net
        require_class(gate, "GEGLU")
        self.norm1, self.norm2, self.norm3 = source.norm1, source.norm2, source.norm3
        self.attn1, self.attn2 = SelfAttention(source.attn1), CrossAttention(source.attn2)
        # Two products in place of one whose result is split: runtimes fuse what follows each, and copy nothing.
        weights, biases = gate.proj.weight.chunk(2), (None, None) if gate.proj.bias is None else gate.proj.bias.chunk(2)
        self.up, self.gate = (Linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.down = Linear.of(down)

    def forward(self, x: Tensor, text: Tensor, images: Tensor, scale: Tensor) -> Tensor:
        """x [B, N, C] -> [B, N, C]."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text, images, scale)
        h = self.norm3(x)
        y: Tensor = x + self.down(self.up(h) * nn.functional.gelu(self.gate(h)))
        return y


class Level(nn.Module):
    """The blocks at one resolution, and what leads to the next one."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(resnet) for resnet in source.resnets)
        self.attentions = nn.ModuleList(Transformer(a) for a in getattr(source, "attentions", None) or ())
        down, up = getattr(source, "downsamplers", None), getattr(source, "upsamplers", None)
        for samplers in (down, up):
            if samplers is not None and len(samplers) != 1:
                raise ExportError(f"a level of the UNet is followed by {len(samplers)} samplers. {_OTHERWISE}")
        self.resize: nn.Module | None = Downsample(down[0]) if down else Upsample(up[0]) if up else None


def _levels(modules: nn.ModuleList) -> list[Level]:
    return [cast(Level, module) for module in modules]


class ExportUNet(nn.Module):
    """The noise in ``sample`` float32 [B, L, H, W] at ``timestep`` [B], float32 [B, L, H, W].

    ``text`` [B, M, E]; ``image_tokens`` [B, G, T, E] of G conditions; ``scale`` [B, G, layers], the strength of every
    condition in every cross-attention layer, ordered as ``layers``. H and W are multiples of ``granularity``. Weights
    are shared with ``source``, which must hold an IP-Adapter.

    Raises ExportError for a UNet that computes something else than Stable Diffusion 1.x, 2.x and XL do.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        _require_known(source)
        self.conv_in, self.norm_out, self.act_out, self.conv_out = (
            getattr(source, name) for name in ("conv_in", "conv_norm_out", "conv_act", "conv_out")
        )
        self.time_proj, self.time_embedding = Sinusoid(source.time_proj), Mlp(source.time_embedding)
        self.time_act: nn.Module = source.down_blocks[0].resnets[0].nonlinearity
        self.down = nn.ModuleList(Level(block) for block in source.down_blocks)
        self.up = nn.ModuleList(Level(block) for block in source.up_blocks)
        self.mid: Level | None = None
        if source.mid_block is not None:
            self.mid = Level(source.mid_block)
        self.layers = cross_attention_layers(source)
        self.granularity = 2 ** sum(level.resize is not None for level in _levels(self.down))
        self.eval().requires_grad_(False)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, image_tokens: Tensor, scale: Tensor) -> Tensor:
        """Predict."""
        return self.denoise(sample, self.time_embedding(self.time_proj(timestep)), text, image_tokens, scale)

    def denoise(self, sample: Tensor, time: Tensor, text: Tensor, image_tokens: Tensor, scale: Tensor) -> Tensor:
        """``time`` [B, T] embedded."""
        time = self.time_act(time)  # every block would apply it again

        def attend(name: str, level: Level, i: int, x: Tensor) -> Tensor:
            prefix = f"{name}.attentions.{i}.transformer_blocks."
            scales = [scale[:, :, j] for j, layer in enumerate(self.layers) if layer.startswith(prefix)]
            y: Tensor = level.attentions[i](x, text, image_tokens, scales)
            return y

        x = self.conv_in(sample)
        skips = [x]
        for n, level in enumerate(_levels(self.down)):
            for i, resnet in enumerate(level.resnets):
                x = resnet(x, time)
                if len(level.attentions):
                    x = attend(f"down_blocks.{n}", level, i, x)
                skips.append(x)
            if level.resize is not None:
                x = level.resize(x)
                skips.append(x)
        if self.mid is not None:
            x = self.mid.resnets[0](x, time)
            for i, resnet in enumerate(self.mid.resnets[1:]):
                x = resnet(attend("mid_block", self.mid, i, x), time)
        for n, level in enumerate(_levels(self.up)):
            for i, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), time)
                if len(level.attentions):
                    x = attend(f"up_blocks.{n}", level, i, x)
            if level.resize is not None:
                x = level.resize(x)
        y: Tensor = self.conv_out(self.act_out(self.norm_out(x)))
        return y


class ExportUNetXL(ExportUNet):
    """SDXL's, which also takes ``pooled`` text states float32 [B, P], and ``time_ids`` float32 [B, 6]: sizes, crop."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        if source.config.addition_embed_type != "text_time":
            raise ExportError(f"the UNet takes no sizes and pooled texts, as SDXL's do. {_OTHERWISE}")
        self.added_proj, self.added_embedding = Sinusoid(source.add_time_proj), Mlp(source.add_embedding)
        self.eval().requires_grad_(False)

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        text: Tensor,
        image_tokens: Tensor,
        scale: Tensor,
        pooled: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """Predict."""
        sizes = self.added_proj(time_ids)
        added = self.added_embedding(torch.cat([pooled, sizes.reshape(sizes.shape[0], -1)], dim=-1))
        time = self.time_embedding(self.time_proj(timestep)) + added
        return self.denoise(sample, time, text, image_tokens, scale)


def cross_attention_layers(unet: Any) -> tuple[str, ...]:
    """The UNet's cross-attention layers by diffusers' names, in the order of its ``attn_processors``."""
    return tuple(name.removesuffix(".processor") for name in unet.attn_processors if name.endswith(_PROCESSOR))


def _require_known(unet: Any) -> None:
    require_class(unet, "UNet2DConditionModel")
    config = unet.config
    for name, allowed in _ALLOWED.items():
        value = config.get(name, allowed[0])
        values = set(value) if isinstance(value, list | tuple) else {value}
        if not values <= set(allowed):
            raise ExportError(f"the UNet has {name} = {value!r}. {_FIXES.get(name, _OTHERWISE)}")
    if config.in_channels != config.out_channels:
        raise ExportError(
            f"the UNet takes {config.in_channels} channels and gives {config.out_channels}, as those for inpainting or "
            f"editing do. {_OTHERWISE}"
        )
    for block in unet.down_blocks:
        require_class(block, "DownBlock2D", "CrossAttnDownBlock2D")
    for block in unet.up_blocks:
        require_class(block, "UpBlock2D", "CrossAttnUpBlock2D")
    if unet.mid_block is not None:
        require_class(unet.mid_block, "UNetMidBlock2DCrossAttn")
    if unet.conv_norm_out is None:
        raise ExportError(f"the UNet has no norm before its last convolution. {_OTHERWISE}")
