"""Projector checkpoints: one safetensors file whose JSON header says what the tensors belong to.

Tensors are ``perceptual.*``, ``semantic.*`` and ``context.NAME`` (learned prompt contexts). The header's ``sha256``
covers them all and is verified on load: a projector that was cut short or altered never scores a photo.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import CheckpointError

from .projector import Activation, Projector
from .prompts import PromptSet
from .tower import image_features

_KEY = "declip"
_FORMAT = "declip-projectors"
_VERSION = 1
_PROBED = 32
_PROBE_TOLERANCE = 1e-3  # of a value between -1 and 1; other arithmetic moves it by a hundredth of that
_ROLES: tuple[Literal["perceptual", "semantic"], ...] = ("perceptual", "semantic")


@dataclass(frozen=True)
class ProjectorCheckpoint:
    """Trained projectors, the tower they stand on, and the prompts they are used with (None: any).

    ``probe`` is what ``tower_probe`` finds, empty where not known.
    """

    tower: str
    pretrained: str
    tower_sha256: str
    perceptual: Projector
    semantic: Projector
    prompts: PromptSet | None = None
    sha256: str = ""
    probe: tuple[float, ...] = ()

    def require_tower(self, visual: nn.Module, tower: str) -> None:
        """CheckpointError unless ``visual`` has exactly the weights that the projectors were trained on, and computes
        with them what that tower did.
        """
        if tower_sha256(visual) != self.tower_sha256 or not self._probed(visual):
            raise CheckpointError(
                f"these projectors were trained on {self.tower} ({self.pretrained}); {tower} with the weights given "
                f"is another tower. Use --tower {self.tower} --pretrained {self.pretrained}."
            )

    def _probed(self, visual: nn.Module) -> bool:
        found = tower_probe(visual) if self.probe else ()
        return len(found) == len(self.probe) and all(
            abs(a - b) < _PROBE_TOLERANCE for a, b in zip(found, self.probe, strict=True)
        )


def tower_sha256(visual: nn.Module) -> str:
    """Hash over names, shapes and values (FP32) of an image tower's weights."""
    return _sha256({n: t for n, t in visual.state_dict().items() if t.is_floating_point()})


@torch.no_grad()
def tower_probe(visual: nn.Module) -> tuple[float, ...]:
    """Some values of the normalised embedding of a fixed picture of noise.

    Weights do not tell a tower: other heads or another activation make something else of the same ones.
    """
    size = getattr(visual, "image_size", None)
    height, width = size if isinstance(size, tuple) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        return ()
    weights = next(visual.parameters())
    picture = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    embedded = image_features(visual, picture.to(weights)).float().cpu()[0]
    return tuple(round(value, 6) for value in F.normalize(embedded, dim=0)[:_PROBED].tolist())


def save_projectors(path: str | Path, checkpoint: ProjectorCheckpoint) -> str:
    """Write ``checkpoint`` (its ``sha256`` is computed) and return the hash over its tensors."""
    from safetensors.torch import save_file

    tensors = {
        f"{role}.{name}": tensor.detach().float().contiguous()
        for role in _ROLES
        for name, tensor in cast(Projector, getattr(checkpoint, role)).state_dict().items()
    }
    if checkpoint.prompts is not None:
        for score in checkpoint.prompts.scores:
            if score.context is not None:
                tensors[f"context.{score.spec.name}"] = score.context.detach().float().contiguous()
    digest = _sha256(tensors)
    header: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "tower": checkpoint.tower,
        "pretrained": checkpoint.pretrained,
        "tower_sha256": checkpoint.tower_sha256,
        "tower_probe": list(checkpoint.probe),
        "prompts": None if checkpoint.prompts is None else checkpoint.prompts.to_dict(),
        "sha256": digest,
    }
    for role in _ROLES:
        projector = cast(Projector, getattr(checkpoint, role))
        header[role] = {"dim": projector.dim, "latent": projector.latent, "activation": projector.activation}
    save_file(tensors, Path(path), metadata={_KEY: json.dumps(header)})
    return digest


def load_projectors(path: str | Path) -> ProjectorCheckpoint:
    """Read and verify a checkpoint; CheckpointError says what is damaged or missing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as projectors: {error}. Copy the file again or train the projectors again."
        ) from error
    try:
        header = json.loads(metadata[_KEY])
        if header["format"] != _FORMAT or header["version"] > _VERSION:
            raise CheckpointError(f"{path} was written by a newer SDK. Run: pip install -U declip-sdk")
        stated = header["sha256"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} has no DeCLIP header. Give a checkpoint that was saved by declip_training."
        ) from error
    if _sha256(tensors) != stated:
        raise CheckpointError(f"the tensors in {path} do not match the hash in its header. Copy the file again.")
    try:
        return _assemble(header, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the header of {path} does not describe its tensors: {error}. Train the projectors again."
        ) from error


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor]) -> ProjectorCheckpoint:
    projectors = {}
    for role in _ROLES:
        form = header[role]
        projector = Projector(int(form["dim"]), int(form["latent"]), cast(Activation, form["activation"]))
        prefix = f"{role}."
        projector.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        projectors[role] = projector.eval()
    contexts = {n.removeprefix("context."): t for n, t in tensors.items() if n.startswith("context.")}
    return ProjectorCheckpoint(
        tower=str(header["tower"]),
        pretrained=str(header["pretrained"]),
        tower_sha256=str(header["tower_sha256"]),
        perceptual=projectors["perceptual"],
        semantic=projectors["semantic"],
        prompts=None if header["prompts"] is None else PromptSet.from_dict(header["prompts"], contexts),
        sha256=str(header["sha256"]),
        probe=tuple(float(value) for value in header.get("tower_probe", ())),
    )


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
