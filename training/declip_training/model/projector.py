"""The residual projectors on top of the frozen image tower (arXiv 2503.02206, section 4.1, eq. 3)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import UsageError

Activation = Literal["between", "before"]
LATENT = 1024


class Projector(nn.Module):
    """Residual MLP: float [B, D] -> float [B, D], on embeddings as the tower gives them (not normalised).

    Two linear layers of width ``latent``, the last one bias-free and zero at first, so that training starts at CLIP
    itself. The paper does not say where the SiLU stands: ``"between"`` gives x + P(SiLU(Lx + b)); ``"before"``, as
    in the paper's cited source (CLAP), gives x + P(L SiLU(x) + b).
    """

    def __init__(self, dim: int, latent: int = LATENT, activation: Activation = "between") -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise UsageError(f"unknown projector form {activation!r}. Use one of {', '.join(get_args(Activation))}.")
        self.dim, self.latent, self.activation = dim, latent, activation
        self.up = nn.Linear(dim, latent)
        self.down = nn.Linear(latent, dim, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Project embeddings [B, D]."""
        hidden = F.silu(self.up(x)) if self.activation == "between" else self.up(F.silu(x))
        projected: Tensor = x + self.down(hidden)
        return projected

    @torch.no_grad()
    def randomize(self, generator: torch.Generator, gain: float = 0.5) -> Projector:
        """Fill both layers, for parity checks (zeros prove nothing); the residual is about ``gain`` of the input."""
        for weight in (self.up.weight, self.down.weight):
            weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
        self.up.bias.normal_(0, 0.1, generator=generator)
        self.down.weight.mul_(2 * gain)  # SiLU of a standard normal has a root mean square of about a half
        return self
