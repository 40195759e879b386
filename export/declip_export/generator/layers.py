"""What UNet, VAE and text encoder are built of: layers that share the weights of diffusers' and export cleanly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import ExportError

_DIGIT, _COARSE = 32, 256
"""A number is a whole one below 256 times 32, and a rest below 32."""


class Linear(nn.Module):
    """x [..., I] -> [..., O] as one MatMul and one Add; the weight [I, O] is a view of the source's, not a copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().t(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, source: Any) -> Linear:
        """The layer that computes what ``source``, a torch.nn.Linear, does."""
        if type(source) is not nn.Linear:
            raise ExportError(
                f"a linear layer of the model is a {type(source).__name__}. Give a model that is neither quantized nor "
                "has adapters in it."
            )
        return cls(source.weight, source.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add."""
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class Sinusoid(nn.Module):
    """Numbers float32 [...] in 0..8191 -> sines and cosines [..., C] at falling frequencies, as diffusers' Timesteps.

    A runtime that computes in bf16 rounds an angle of 981 to 980 or worse, which left a fifth of the embedding wrong.
    So a number is taken apart into 32 a + b + r, by a remainder each, which is exact as long as nothing but the input
    goes into it; a and b are small whole numbers, which bf16 holds, and look up sine and cosine; only r is an angle.
    """

    frequencies: Tensor
    sine_coarse: Tensor
    cosine_coarse: Tensor
    sine_fine: Tensor
    cosine_fine: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        half, odd = divmod(source.num_channels, 2)
        if odd:
            raise ExportError(f"the time embedding has the odd width {source.num_channels}. Give another base model.")
        steps = torch.arange(half, dtype=torch.float64) / (half - source.downscale_freq_shift)
        frequencies = source.scale * torch.exp(-math.log(10000) * steps)
        self.cosine_first = bool(source.flip_sin_to_cos)
        coarse = _DIGIT * torch.arange(_COARSE, dtype=torch.float64)[:, None] * frequencies
        fine = torch.arange(_DIGIT, dtype=torch.float64)[:, None] * frequencies
        tables = {"sine_coarse": coarse.sin(), "cosine_coarse": coarse.cos(), "sine_fine": fine.sin()}
        for name, table in {"frequencies": frequencies, **tables, "cosine_fine": fine.cos()}.items():
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        rest, within = torch.fmod(x, 1.0), torch.fmod(x, float(_DIGIT))
        fine = torch.round(within - rest).long()
        coarse = torch.round((x - within) / float(_DIGIT)).clamp(0, _COARSE - 1).long()
        angle = rest.unsqueeze(-1) * self.frequencies
        sine, cosine = torch.sin(angle), torch.cos(angle)
        for index, sines, cosines in (
            (fine, self.sine_fine, self.cosine_fine),
            (coarse, self.sine_coarse, self.cosine_coarse),
        ):
            s, c = F.embedding(index, sines), F.embedding(index, cosines)
            sine, cosine = s * cosine + c * sine, c * cosine - s * sine
        return torch.cat([cosine, sine] if self.cosine_first else [sine, cosine], dim=-1)


class Mlp(nn.Module):
    """Two linear layers with an activation between, as diffusers' TimestepEmbedding."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.first, self.second, self.act = Linear.of(source.linear_1), Linear.of(source.linear_2), source.act

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        y: Tensor = self.second(self.act(self.first(x)))
        return y


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut: x [B, I, H, W] (, time [B, T] after its activation) -> [B, O, H, W]."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        plain = ("default",) if source.time_emb_proj is not None else ("default", "group")  # the latter is a VAE's
        if source.time_embedding_norm not in plain or source.upsample is not None or source.downsample is not None:
            raise ExportError(
                f"a ResNet block of the model has the time embedding {source.time_embedding_norm!r} or resizes. Give "
                "another base model."
            )
        self.norm1, self.conv1, self.norm2, self.conv2 = source.norm1, source.conv1, source.norm2, source.conv2
        self.act: nn.Module = source.nonlinearity
        self.time = None if source.time_emb_proj is None else Linear.of(source.time_emb_proj)
        self.shortcut: nn.Module | None = source.conv_shortcut
        self.divisor = float(source.output_scale_factor)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """One block."""
        h: Tensor = self.conv1(self.act(self.norm1(x)))
        if self.time is not None:
            h = h + self.time(time)[:, :, None, None]
        h = self.conv2(self.act(self.norm2(h)))
        y = h + (x if self.shortcut is None else self.shortcut(x))
        return y if self.divisor == 1.0 else y / self.divisor


class Upsample(nn.Module):
    """x [B, C, H, W] -> [B, C, 2H, 2W], nearest, then a convolution."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        if not source.use_conv or source.use_conv_transpose or source.norm is not None:
            raise ExportError("the model enlarges without a plain convolution. Give another base model.")
        self.conv: nn.Module = source.conv if source.name == "conv" else source.Conv2d_0

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Downsample(nn.Module):
    """x [B, C, H, W] -> [B, C, H/2, W/2] by a convolution with stride 2."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        if not source.use_conv or source.norm is not None:
            raise ExportError("the model reduces without a plain convolution. Give another base model.")
        self.conv: nn.Module = source.conv
        self.pad_after = source.padding == 0

    def forward(self, x: Tensor) -> Tensor:
        """Reduce."""
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_after else x)
        return y


def tokens_of(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]."""
    return x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)


def picture_of(x: Tensor, like: Tensor) -> Tensor:
    """[B, H W, C] -> [B, C, H, W] with the height and width of ``like``."""
    y = x.transpose(1, 2)
    return y.reshape(y.shape[0], y.shape[1], like.shape[2], like.shape[3])


def require_class(module: Any, *names: str) -> None:
    """ExportError unless ``module`` is of one of these classes of diffusers or transformers."""
    found = type(module).__name__
    if found not in names:
        raise ExportError(f"the model has a {found} where {' or '.join(names)} is known. Give another base model.")
