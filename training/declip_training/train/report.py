"""Disentanglement report: do the two embeddings separate how a picture looks from what it shows?

Retrieval says which description each embedding finds; movement says what makes it move. Texts that were made from
distortion labels separate by construction and prove nothing: give records with texts that people wrote, of pictures
that training did not see. The distortions are those of ``evaluation.ladders``, which share no code with any training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import ImageError, TrainingError
from declip_runtime.images import open_image
from declip_runtime.preprocess import centre_square
from declip_training.evaluation.ladders import LADDERS
from declip_training.i2t.records import Record

from .bank import Progress
from .crops import Pixels
from .images import in_order
from .towers import Towers

VIEWS = ("clip", "perceptual", "semantic")
TEXTS = ("perceptual", "semantic")
STRENGTHS = (("mild", 1), ("strong", 3))
"""Names and rungs of each ladder."""

_RECALLS = (1, 5, 10)
_TOGETHER = 64
_ROWS = 2048  # of a similarity matrix that are in memory


@dataclass(frozen=True)
class Measured:
    """``images`` float32 [1 + K, M, D]: M pictures untouched and under K distortions, as the tower gives them.

    ``clean`` float32 [N, D] are all pictures untouched, ``texts`` float32 [N, 2, D] normalised T_p and T_s.
    """

    clean: Tensor
    texts: Tensor
    images: Tensor
    distortions: tuple[str, ...]


def require_kinds(kinds: Iterable[str]) -> None:
    """Raise TrainingError for distortions that do not exist."""
    if unknown := set(kinds) - LADDERS.keys():
        raise TrainingError(f"no distortion {', '.join(sorted(unknown))}. Use {', '.join(LADDERS)}.")


def measure(
    towers: Towers,
    records: Sequence[Record],
    root: Path,
    *,
    kinds: Sequence[str] = tuple(LADDERS),
    distorted: int = 200,
    skip_unreadable: bool = False,
    threads: int = 4,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Measured, list[str]]:
    """Run the towers over ``records``, images relative to ``root``; at most ``distorted`` of them are distorted too.

    Pictures are distorted at twice the resolution that the tower sees. Returns the embeddings and why images could not
    be read. Raises TrainingError for those unless ``skip_unreadable``, for an unknown kind, and below 2 records.
    """
    require_kinds(kinds)
    # which ones are distorted follows from the ids, not from the order of the table
    ordered = sorted(records, key=lambda r: hashlib.sha256(r.id.encode("utf-8", "surrogatepass")).digest())
    conditions = [(f"{kind}, {strength}", LADDERS[kind][rung]) for kind in kinds for strength, rung in STRENGTHS]
    read = partial(_pictures, root=root, towers=towers, distort=[function for _, function in conditions])
    jobs = [(record, index < distorted) for index, record in enumerate(ordered)]
    clean: list[Tensor] = []
    moved: list[Tensor] = []
    kept: list[Record] = []
    reasons: list[str] = []
    waiting: list[Pixels] = []

    def run_tower(enough: int) -> None:
        if len(waiting) >= enough and waiting:
            clean.append(towers.images(waiting).cpu())
            waiting.clear()

    for done, (record, result) in enumerate(zip(ordered, in_order(read, jobs, threads), strict=True), 1):
        progress("report", done, len(ordered))
        if isinstance(result, str):
            reasons.append(result)
            continue
        kept.append(record)
        waiting.append(result[0])
        if len(result) > 1:
            moved.append(towers.images(result).cpu())
        run_tower(_TOGETHER)
    run_tower(0)
    if reasons and not skip_unreadable:
        told = " ".join(reasons[:3]) + (" ..." if len(reasons) > 3 else "")
        raise TrainingError(
            f"{len(reasons):,} of {len(ordered):,} images of the report cannot be read: {told} Repair them, or report "
            "without them: --skip-unreadable."
        )
    if len(moved) < 2:
        raise TrainingError(f"a report needs 2 readable records, there are {len(kept)}. Give more records.")
    texts = towers.texts([text for r in kept for text in (r.perceptual, r.semantic)]).cpu()
    names = tuple(name for name, _ in conditions)
    return Measured(torch.cat(clean), texts.view(len(kept), 2, -1), torch.stack(moved, 1), names), reasons


@torch.no_grad()
def disentanglement(measured: Measured, perceptual: nn.Module, semantic: nn.Module) -> dict[str, Any]:
    """The numbers of a report, for CLIP itself (no projector) and for both embeddings.

    ``retrieval``: shares 0..1 of images whose own text is among the nearest 1, 5 and 10 of all different texts, the
    same from text to image, and the mean rank as a share of all (0 best, 0.5 chance). ``movement``: mean of 1 - cosine
    between a picture and itself distorted, and between different pictures equally distorted; ``ratio`` divides them.
    """
    heads: dict[str, Callable[[Tensor], Tensor]] = {"clip": lambda x: x, "perceptual": perceptual, "semantic": semantic}
    return {
        "records": len(measured.clean),
        "distorted": measured.images.shape[1],
        "retrieval": {
            view: {
                name: retrieval(F.normalize(head(measured.clean), dim=-1), measured.texts[:, index])
                for index, name in enumerate(TEXTS)
            }
            for view, head in heads.items()
        },
        "movement": {
            view: movement(F.normalize(head(measured.images), dim=-1), measured.distortions)
            for view, head in heads.items()
        },
    }


def retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Recall and mean rank for normalised rows [N, D] that belong together; equal texts count as one, ties as half."""
    different, target = torch.unique(texts, dim=0, return_inverse=True)
    ranks, back = [], []
    for start in range(0, len(images), _ROWS):
        similar = images[start : start + _ROWS] @ different.T
        own = similar.gather(1, target[start : start + _ROWS, None])
        ranks.append((similar > own).sum(1) + 0.5 * ((similar == own).sum(1) - 1))
    for start in range(0, len(different), _ROWS):  # a text finds its image where the nearest of its own is near enough
        similar = different[start : start + _ROWS] @ images.T
        belongs = target[None] == torch.arange(start, start + len(similar))[:, None]
        nearest = similar.masked_fill(~belongs, -2).amax(1, keepdim=True)
        back.append((similar > nearest).sum(1) + 0.5 * ((similar == nearest) & ~belongs).sum(1))
    ranked, back_ranked = torch.cat(ranks), torch.cat(back)
    recalls = {f"recall@{k}": float((ranked < k).float().mean()) for k in _RECALLS}
    reverse = {f"text_to_image_recall@{k}": float((back_ranked < k).float().mean()) for k in _RECALLS}
    rank = float(ranked.mean()) / max(1, len(different) - 1)
    return {**recalls, **reverse, "mean_rank": rank, "texts": len(different)}


def movement(images: Tensor, distortions: Sequence[str]) -> dict[str, Any]:
    """How far normalised embeddings [1 + K, M, D] move under content change and under each of K ``distortions``."""
    count = images.shape[1]
    # mean cosine over pairs i != j, from the length of the sum
    pairs = (images.sum(1).square().sum(-1) - count) / (count * (count - 1))
    content = float((1 - pairs).mean())
    each = (1 - (images[:1] * images[1:]).sum(-1)).mean(1)
    distortion = float(each.mean())
    return {
        "content": content,
        "distortion": distortion,
        "ratio": distortion / max(content, 1e-12),
        "each": {name: float(value) for name, value in zip(distortions, each, strict=True)},
    }


def _pictures(
    job: tuple[Record, bool], root: Path, towers: Towers, distort: Sequence[Callable[[Pixels], Pixels]]
) -> list[Pixels] | str:
    """One record's picture uint8 [S, S, 3] untouched and, where asked for, distorted; or why it cannot be read."""
    record, moves = job
    spec = towers.preprocess
    try:
        image = open_image(root / record.image, minimum_side=4 * spec.size)
    except ImageError as error:
        return str(error)
    large = np.asarray(centre_square(image, replace(spec, size=2 * spec.size)))
    versions = [large, *(function(large) for function in distort)] if moves else [large]
    return [np.asarray(Image.fromarray(v).resize((spec.size, spec.size), Image.Resampling.BICUBIC)) for v in versions]
