"""The decoder of diffusers' AutoencoderKL written for execution, from latents to pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import SelfAttention
from .layers import ResBlock, Upsample, picture_of, require_class, tokens_of


class MidAttention(nn.Module):
    """Attention over all pixels: x [B, C, H, W] -> the same."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm: nn.Module = source.group_norm
        self.attention = SelfAttention(source)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, beside a shortcut."""
        return x + picture_of(self.attention(tokens_of(self.norm(x))), x)


class ExportDecoder(nn.Module):
    """Latents float32 [B, L, H, W] as a scheduler leaves them -> pixels float32 [B, sH, sW, 3] in 0..1, s = ``scale``.

    Weights are shared with ``source``. Raises ExportError for an autoencoder of another kind.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        require_class(source, "AutoencoderKL")
        config, decoder = source.config, source.decoder
        gain, shift = torch.tensor(1.0 / config.scaling_factor), torch.tensor(config.get("shift_factor") or 0.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            gain, shift = torch.tensor(std) / config.scaling_factor, torch.tensor(mean)
        self.register_buffer("gain", gain.expand(config.latent_channels).reshape(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer(
            "shift", shift.expand(config.latent_channels).reshape(1, -1, 1, 1).clone(), persistent=False
        )
        self.post_quant: nn.Module | None = source.post_quant_conv
        self.conv_in, self.norm_out, self.act_out, self.conv_out = (
            getattr(decoder, name) for name in ("conv_in", "conv_norm_out", "conv_act", "conv_out")
        )
        require_class(decoder.mid_block, "UNetMidBlock2D")
        self.mid_resnets = nn.ModuleList(ResBlock(resnet) for resnet in decoder.mid_block.resnets)
        self.mid_attentions = nn.ModuleList(MidAttention(a) for a in decoder.mid_block.attentions if a is not None)
        self.up = nn.ModuleList()
        for block in decoder.up_blocks:
            require_class(block, "UpDecoderBlock2D")
            self.up.extend(ResBlock(resnet) for resnet in block.resnets)
            self.up.extend(Upsample(sampler) for sampler in block.upsamplers or ())
        self.scale = 2 ** sum(isinstance(m, Upsample) for m in self.modules())
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        x = latents * self.gain + self.shift
        if self.post_quant is not None:
            x = self.post_quant(x)
        x = self.mid_resnets[0](self.conv_in(x))
        for i, resnet in enumerate(self.mid_resnets[1:]):
            x = resnet(self.mid_attentions[i](x) if len(self.mid_attentions) else x)
        for layer in self.up:
            x = layer(x)
        y: Tensor = self.conv_out(self.act_out(self.norm_out(x)))
        return (y * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
