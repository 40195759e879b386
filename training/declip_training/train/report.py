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
from .images import FileFacts, in_order
from .towers import Towers

VIEWS = ("clip", "perceptual", "semantic")
TEXTS = ("perceptual", "semantic")
STRENGTHS = (("mild", 1), ("strong", 3))
"""Names and rungs of each ladder."""

STILL = 1e-6
"""A movement that float32 makes of nothing."""

_RECALLS = (1, 5, 10)
_TOGETHER = 64
_ROWS = 2048  # of a similarity matrix that are in memory


@dataclass(frozen=True)
class Measured:
    """``images`` float32 [1 + K, M, D]: M pictures untouched and under K distortions, as the tower gives them.

    ``clean`` float32 [N, D] are the pictures of all ``records``, untouched, ``texts`` float32 [N, 2, D] normalised T_p
    and T_s, ``sha256`` of the image files: several records may be of one picture, which is distorted once.
    """

    clean: Tensor
    texts: Tensor
    images: Tensor
    distortions: tuple[str, ...]
    records: tuple[Record, ...]
    sha256: tuple[str, ...]


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
    be read. Raises TrainingError for those unless ``skip_unreadable``, for an unknown kind, and below 2 pictures.
    """
    require_kinds(kinds)
    # which ones are distorted follows from the ids, not from the order of the table
    ordered = sorted(records, key=lambda r: hashlib.sha256(r.id.encode("utf-8", "surrogatepass")).digest())
    conditions = [(f"{kind}, {strength}", LADDERS[kind][rung]) for kind in kinds for strength, rung in STRENGTHS]
    read = partial(_pictures, root=root, towers=towers, distort=[function for _, function in conditions])
    files = list(in_order(FileFacts.of, [root / record.image for record in ordered], threads))
    first = {facts.sha256: index for index, facts in reversed(list(enumerate(files))) if facts is not None}
    moving = set(sorted(first.values())[:distorted])  # each picture once
    jobs = [(record, index in moving) for index, record in enumerate(ordered)]
    clean: list[Tensor] = []
    moved: list[Tensor] = []
    kept: list[Record] = []
    hashes: list[str] = []
    reasons: list[str] = []
    waiting: list[Pixels] = []

    def run_tower(enough: int) -> None:
        if len(waiting) >= enough and waiting:
            clean.append(towers.images(waiting).cpu())
            waiting.clear()

    results = zip(ordered, files, in_order(read, jobs, threads), strict=True)
    for done, (record, facts, result) in enumerate(results, 1):
        progress("report", done, len(ordered))
        if isinstance(result, str):
            reasons.append(result)
            continue
        kept.append(record)
        hashes.append("" if facts is None else facts.sha256)
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
        raise TrainingError(
            f"a report needs readable records of 2 pictures, there are {len(kept)} of {len(set(hashes))}. Give more."
        )
    written = [text for r in kept for text in (r.perceptual, r.semantic)]
    different = {text: place for place, text in enumerate(dict.fromkeys(written))}
    # each once: another place in a batch moves the last bits, and equal texts would be two
    texts = towers.texts(list(different)).cpu()[[different[text] for text in written]]
    names = tuple(name for name, _ in conditions)
    images = torch.stack(moved, 1)
    return Measured(torch.cat(clean), texts.view(len(kept), 2, -1), images, names, tuple(kept), tuple(hashes)), reasons


@torch.no_grad()
def disentanglement(measured: Measured, perceptual: nn.Module, semantic: nn.Module) -> dict[str, Any]:
    """The numbers of a report, for CLIP itself (no projector) and for both embeddings.

    ``retrieval``: shares 0..1 of pictures of which a text is among the nearest 1, 5 and 10 of all different texts, the
    same from text to picture, and the mean rank as a share of all (0 best, 0.5 chance). ``movement``: mean of 1 -
    cosine between a picture and itself distorted, and between different pictures equally distorted; ``ratio`` divides
    them.
    """
    numbers = {sha256: number for number, sha256 in enumerate(dict.fromkeys(measured.sha256))}
    pictures = torch.tensor([numbers[sha256] for sha256 in measured.sha256])
    heads: dict[str, Callable[[Tensor], Tensor]] = {"clip": lambda x: x, "perceptual": perceptual, "semantic": semantic}
    return {
        "records": len(measured.clean),
        "distorted": measured.images.shape[1],
        "retrieval": {
            view: {
                name: retrieval(F.normalize(head(measured.clean), dim=-1), measured.texts[:, index], pictures)
                for index, name in enumerate(TEXTS)
            }
            for view, head in heads.items()
        },
        "movement": {
            view: movement(F.normalize(head(measured.images), dim=-1), measured.distortions)
            for view, head in heads.items()
        },
    }


def retrieval(images: Tensor, texts: Tensor, pictures: Tensor | None = None) -> dict[str, float]:
    """Recall and mean rank for normalised rows [N, D] that belong together; equal texts count as one, ties as half.

    Rows of the same number in ``pictures`` [N] are of one picture (None: all are different), which finds its texts with
    the nearest of them.
    """
    different, target = torch.unique(texts, dim=0, return_inverse=True)
    picture = torch.arange(len(images)) if pictures is None else torch.unique(pictures, return_inverse=True)[1]
    first = torch.full((int(picture.max()) + 1,), len(images)).scatter_reduce(
        0, picture, torch.arange(len(images)), "amin"
    )
    pairs = torch.stack([picture, target], 1)
    ranked = _ranks(images[first], different, pairs)
    back = _ranks(different, images[first], pairs.flip(1))
    recalls = {f"recall@{k}": float((ranked < k).float().mean()) for k in _RECALLS}
    reverse = {f"text_to_image_recall@{k}": float((back < k).float().mean()) for k in _RECALLS}
    rank = float(ranked.mean()) / max(1, len(different) - 1)
    return {**recalls, **reverse, "mean_rank": rank, "texts": len(different), "pictures": len(first)}


def _ranks(queries: Tensor, answers: Tensor, pairs: Tensor) -> Tensor:
    """For each query how many wrong answers are nearer than the nearest right one; ``pairs`` [P, 2] are right."""
    ranks = []
    for start in range(0, len(queries), _ROWS):
        similar = queries[start : start + _ROWS] @ answers.T
        here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(similar))]
        wrong = torch.ones_like(similar, dtype=torch.bool)
        wrong[here[:, 0] - start, here[:, 1]] = False
        nearest = similar.masked_fill(wrong, -2).amax(1, keepdim=True)
        ranks.append(((similar > nearest) & wrong).sum(1) + 0.5 * ((similar == nearest) & wrong).sum(1))
    return torch.cat(ranks)


def movement(images: Tensor, distortions: Sequence[str]) -> dict[str, Any]:
    """How far normalised embeddings [1 + K, M, D] move under content change and under each of K ``distortions``.

    ``ratio`` is None where other content moves them by no more than rounding does.
    """
    images, count = images.double(), images.shape[1]
    # mean cosine over pairs i != j, from the length of the sum
    pairs = (images.sum(1).square().sum(-1) - count) / (count * (count - 1))
    content = float((1 - pairs).mean())
    each = (1 - (images[:1] * images[1:]).sum(-1)).mean(1)
    distortion = float(each.mean())
    return {
        "content": content,
        "distortion": distortion,
        "ratio": distortion / content if content > STILL else None,
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
    side = (spec.size, spec.size)
    return [np.asarray(Image.fromarray(v).resize(side, Image.Resampling.BICUBIC)) for v in versions]
