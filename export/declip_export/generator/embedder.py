"""The image side: an open_clip tower with DeCLIP's projectors, and the adapter's projection to image tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from declip_export.fold import ExportTower
from declip_export.vit import ExportViT, can_rewrite
from declip_export.weights import StorageDtype
from declip_runtime.errors import CheckpointError, ExportError
from declip_runtime.manifest import Preprocess
from declip_training.model.checkpoint import load_projectors
from declip_training.model.projector import Projector
from declip_training.model.tower import load_clip

from .adapter import TOKENS
from .layers import Linear


class ImageEncoder(nn.Module):
    """``images`` uint8 [B, S, S, 3] -> ``identity``, ``perceptual``, ``semantic`` float32 [B, D], not normalised.

    Identity is the tower's embedding, the others are that through a projector each; None leaves them identical.
    """

    def __init__(self, tower: nn.Module, perceptual: Projector | None, semantic: Projector | None) -> None:
        super().__init__()
        self.tower = tower
        self.perceptual, self.semantic = (None if p is None else copy.deepcopy(p) for p in (perceptual, semantic))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed."""
        identity: Tensor = self.tower(images)
        # Three outputs are three values in a graph, even where no projector tells them apart.
        perceptual = identity.clone() if self.perceptual is None else self.perceptual(identity)
        semantic = identity.clone() if self.semantic is None else self.semantic(identity)
        return identity, perceptual, semantic


@dataclass(frozen=True)
class Embedder:
    """An image encoder with embeddings of width ``dim``, how pictures are prepared for it, and where it came from.

    ``projectors_sha256`` is None where no projectors were given: perceptual and semantic are then the identity.
    """

    encoder: ImageEncoder
    preprocess: Preprocess
    dim: int
    tower: str
    pretrained: str
    projectors_sha256: str | None = None

    @property
    def projected(self) -> bool:
        """Whether perceptual and semantic embeddings differ from the tower's."""
        return self.projectors_sha256 is not None


def load_embedder(
    tower: str | None = None,
    pretrained: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    dtype: StorageDtype = "float16",
) -> Embedder:
    """Load an open_clip tower, as ``load_clip`` does, with the projectors of a DeCLIP ``checkpoint``.

    ``tower`` and ``pretrained`` default to those that the checkpoint was trained on. Without a checkpoint projectors
    are the identity, which is the plain IP-Adapter. ``dtype`` float16 rounds weights as an engine with FP16 storage
    does.

    Raises ExportError where neither is named and for a tower that cannot be had, CheckpointError for projectors that
    are damaged or belong to another tower.
    """
    projectors = None if checkpoint is None else load_projectors(checkpoint)
    if projectors is not None:
        tower, pretrained = tower or projectors.tower, pretrained or projectors.pretrained
    if tower is None or pretrained is None:
        raise ExportError("no tower is named, and no checkpoint that names one. Name a tower and its weights.")
    clip, _, preprocess = load_clip(tower, pretrained)
    visual: Any = clip.visual
    if projectors is not None:
        projectors.require_tower(visual, tower)
    del clip  # its text tower, a third of ViT-H-14
    body = ExportViT(visual, preprocess) if can_rewrite(visual) else ExportTower(visual, preprocess)
    del visual
    return embedder_of(
        body,
        preprocess,
        Path(tower).stem if tower.endswith(".json") else tower,
        Path(pretrained).name if Path(pretrained).is_file() else str(pretrained),
        None if projectors is None else projectors.perceptual,
        None if projectors is None else projectors.semantic,
        None if projectors is None else projectors.sha256,
        dtype=dtype,
    )


def embedder_of(
    body: nn.Module,
    preprocess: Preprocess,
    tower: str,
    pretrained: str,
    perceptual: Projector | None = None,
    semantic: Projector | None = None,
    projectors_sha256: str | None = None,
    *,
    dtype: StorageDtype = "float16",
) -> Embedder:
    """An embedder of an ``ExportViT`` or ``ExportTower``, which it takes over, and projectors, which it copies.

    Raises CheckpointError for projectors of another width, ExportError for weights that FP16 cannot hold.
    """
    with torch.no_grad():
        dim = int(body(torch.zeros(1, preprocess.size, preprocess.size, 3, dtype=torch.uint8)).shape[-1])
    for projector in (perceptual, semantic):
        if projector is not None and projector.dim != dim:
            raise CheckpointError(
                f"the projectors take embeddings of width {projector.dim}, {tower} gives {dim}. Use the tower that "
                "they were trained on."
            )
    encoder = ImageEncoder(body, perceptual, semantic)
    if dtype == "float16":
        _round(encoder)
    return Embedder(encoder, preprocess, dim, tower, pretrained, projectors_sha256)


@torch.no_grad()
def _round(encoder: ImageEncoder) -> None:
    """Round weights to FP16; those of a tower that torch's exporter must run stay FP32 by type."""
    runs_in_exporter = not isinstance(encoder.tower, ExportViT)
    for name, parameter in encoder.named_parameters():
        half = parameter.half()
        if not bool(half.isfinite().all()):
            raise ExportError(f"{name} does not fit FP16. Export with FP32 storage: --weights float32.")
        parameter.data = half.float() if runs_in_exporter else half


class ExportTokens(nn.Module):
    """The adapter's projection: ``embeddings`` float32 [B, D] -> ``tokens`` float32 [B, T, C]."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.linear, self.norm = Linear.of(source.image_embeds), source.norm
        self.tokens = TOKENS
        self.eval().requires_grad_(False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project."""
        tokens = self.linear(embeddings)
        normed: Tensor = self.norm(tokens.reshape(tokens.shape[0], self.tokens, -1))
        return normed
