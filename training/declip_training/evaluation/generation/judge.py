"""The model that judges consistency: a DeCLIP, which may be another than the one that steered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from declip_runtime.errors import TrainingError
from declip_runtime.images import open_image
from declip_runtime.preprocess import prepare
from declip_training.model.checkpoint import ProjectorCheckpoint, load_projectors
from declip_training.train.towers import Towers

from .conditions import Condition
from .measures import Target, Vector

_AT_ONCE = 16

Advance = Callable[[int, int], None]
"""Called with how many images are done and how many there are."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of one image in both spaces, float32 [D] each, of length 1."""

    perceptual: Vector
    semantic: Vector


class Judge:
    """A CLIP with DeCLIP's projectors: images and texts to points in the perceptual and the semantic space.

    Make one with ``load``. Texts are what the text tower makes of them, in both spaces, as DeCLIP was trained.
    """

    def __init__(self, towers: Towers, checkpoint: ProjectorCheckpoint) -> None:
        self._towers = towers
        self._checkpoint = checkpoint
        self._perceptual = checkpoint.perceptual.to(towers.device)
        self._semantic = checkpoint.semantic.to(towers.device)

    @classmethod
    def load(
        cls, checkpoint: str | Path, device: torch.device, tower: str | None = None, pretrained: str | None = None
    ) -> Judge:
        """Load projectors and, in FP32, the open_clip tower that they were trained on, or the one that is named.

        Raises CheckpointError for projectors that are damaged or belong to another tower, and what ``load_clip`` does.
        """
        projectors = load_projectors(checkpoint)  # before the tower, which takes longer
        towers = Towers.load(tower or projectors.tower, pretrained or projectors.pretrained, device, "fp32")
        projectors.require_tower(towers.visual, towers.tower)
        return cls(towers, projectors)

    @property
    def checkpoint_sha256(self) -> str:
        """Hash of the projectors, as engines name it."""
        return self._checkpoint.sha256

    @property
    def identity(self) -> dict[str, str]:
        """What decides its measures: names, and hashes of the image tower and the projectors."""
        return {
            "judge": f"{self._towers.tower} ({self._towers.pretrained})",
            "judge's tower": self._checkpoint.tower_sha256,
            "judge's projectors": self._checkpoint.sha256,
        }

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the text tower reads, as far as its tokenizer tells."""
        return self._towers.count_cut(texts) or 0

    @torch.no_grad()
    def images(self, paths: Sequence[Path], advance: Advance = lambda done, total: None) -> list[Embedded]:
        """Embed images in the order given.

        Raises ImageError for one that cannot be opened, TrainingError for embeddings that are no numbers.
        """
        found: list[Embedded] = []
        for start in range(0, len(paths), _AT_ONCE):
            part = paths[start : start + _AT_ONCE]
            pixels = [prepare(open_image(path), self._towers.preprocess)[0] for path in part]
            features = self._towers.images(pixels)
            both = [_unit(head(features), part) for head in (self._perceptual, self._semantic)]
            found += [Embedded(p, s) for p, s in zip(*both, strict=True)]
            advance(len(found), len(paths))
        return found

    def texts(self, texts: Sequence[str]) -> list[Vector]:
        """Embed texts in the order given, float32 [D] each, of length 1. Raises TrainingError as ``images`` does."""
        return list(_unit(self._towers.texts(texts), texts)) if texts else []

    def targets(
        self, conditions: Sequence[Condition], advance: Advance = lambda done, total: None
    ) -> dict[str, Target]:
        """What pictures are compared with, by the condition's name; every image and text is embedded once."""
        paths = list(dict.fromkeys(path for condition in conditions for path in condition.images.values()))
        texts = list(dict.fromkeys(condition.text for condition in conditions if condition.text))
        images = dict(zip(paths, self.images(paths, advance), strict=True))
        words = dict(zip(texts, self.texts(texts), strict=True))
        return {condition.name: _target(condition, images, words) for condition in conditions}


def _target(condition: Condition, images: dict[Path, Embedded], words: dict[str, Vector]) -> Target:
    look, content = condition.perceptual, condition.semantic
    return Target(
        perceptual=images[look].perceptual if isinstance(look, Path) else words[look],
        semantic=images[content].semantic if isinstance(content, Path) else words[content],
        look_semantic=images[look].semantic if isinstance(look, Path) else None,
        content_perceptual=images[content].perceptual if isinstance(content, Path) else None,
    )


def _unit(rows: Tensor, names: Sequence[object]) -> Vector:
    """Rows float32 [N, D] of length 1; a cosine with what has none would be a number that means nothing."""
    lengths = rows.float().norm(dim=-1)
    good = torch.isfinite(rows).all(dim=-1) & (lengths > 0)
    if not good.all():
        name = names[int((~good).nonzero()[0, 0])]
        raise TrainingError(
            f"the judge's embedding of {str(name)!r} is no direction: it has NaN, infinity or only zeros. Check the "
            "weights of its tower and checkpoint, or use others."
        )
    unit: Vector = np.asarray(F.normalize(rows.float(), dim=-1).cpu().numpy(), np.float32)
    return unit
