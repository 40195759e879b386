"""The frozen towers: pixels and texts to embeddings, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.manifest import Preprocess
from declip_training.model.checkpoint import tower_sha256
from declip_training.model.tower import Tokenizer, image_features, load_clip
from declip_training.pixels import to_input

from .crops import Pixels
from .settings import Precision

_AT_ONCE = 64


@dataclass(frozen=True)
class Towers:
    """A frozen CLIP on its device; ``tower`` and ``pretrained`` are names as a checkpoint states them.

    ``config_sha256`` is of the file that describes a tower of one's own, empty for those that open_clip knows.
    """

    tower: str
    pretrained: str
    clip: nn.Module
    tokenizer: Tokenizer
    preprocess: Preprocess
    device: torch.device
    precision: Precision
    config_sha256: str = ""

    @classmethod
    def load(cls, tower: str, pretrained: str, device: torch.device, precision: Precision) -> Towers:
        """Load as ``load_clip`` does, and raise what it raises."""
        clip, tokenizer, preprocess = load_clip(tower, pretrained)
        clip = clip.to(device).requires_grad_(False)
        name = Path(tower).stem if tower.endswith(".json") else tower
        tag = Path(pretrained).name if Path(pretrained).is_file() else pretrained
        config = _config_sha256(Path(tower)) if tower.endswith(".json") else ""
        return cls(name, tag, clip, tokenizer, preprocess, device, precision, config)

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return cast(nn.Module, self.clip.visual)

    def identity(self) -> dict[str, str]:
        """Names and hashes; ``clip_sha256`` covers the text tower too, ``config_sha256`` stands where there is one."""
        return {
            **({"config_sha256": self.config_sha256} if self.config_sha256 else {}),
            "tower": self.tower,
            "pretrained": self.pretrained,
            "tower_sha256": tower_sha256(self.visual),
            "clip_sha256": tower_sha256(self.clip),
        }

    @torch.no_grad()
    def images(self, pixels: Sequence[Pixels]) -> Tensor:
        """Embeddings float32 [N, D], not normalised, of pictures uint8 [S, S, 3]."""
        rows = []
        for part in _parts(pixels):
            normalised = to_input(np.stack(part), self.preprocess.mean, self.preprocess.std, self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                rows.append(image_features(self.visual, normalised).float())
        return torch.cat(rows)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [N, D], L2-normalised; what exceeds the tower's context length is cut."""
        encode = cast(Any, self.clip).encode_text
        rows = []
        for part in _parts(texts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                rows.append(F.normalize(encode(self.tokenizer(list(part)).to(self.device)).float(), dim=-1))
        return torch.cat(rows)

    def count_cut(self, texts: Iterable[str]) -> int | None:
        """How many texts are longer than the tower's context; None where the tokenizer does not tell."""
        tokenizer: Any = self.tokenizer
        if not hasattr(tokenizer, "encode") or not hasattr(tokenizer, "context_length"):
            return None
        room = int(tokenizer.context_length) - 2  # start and end
        return sum(len(tokenizer.encode(text)) > room for text in texts)


def _config_sha256(path: Path) -> str:
    """Of what the file says, however it is written."""
    said = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
