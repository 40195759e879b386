"""Do the bundled engine's two embeddings separate how a photo looks from what it shows?

Judged on what people said: opinions on the validation photos (by which the projectors' step was chosen), captions of
Flickr8k's Test, which nothing saw; and on faults of kinds that training never makes
(``declip_training.evaluation.unseen``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_training.data.distortions import scaled
from declip_training.evaluation.unseen import UNSEEN
from declip_training.markdown import grid
from declip_training.train.report import movement, retrieval

RUNG = 3
"""Of the five of each kind: clearly visible."""
FAULTY = 200
"""So many of the captioned photos are also looked at with every fault."""


@dataclass(frozen=True)
class DecouplingFeatures:
    """Tower features float32, not normalised: ``clean`` [N, D] of captioned photos, ``faulty`` [K, M, D] of M of them.

    These are the first M; row k is the kind k of UNSEEN. ``captions`` [N, D] are normalised, one of each photo's.
    """

    clean: Tensor
    faulty: Tensor
    captions: Tensor


@torch.no_grad()
def decoupling_features(
    photos: npt.NDArray[np.uint8],
    side: int,
    captions: Sequence[str],
    encode: Callable[[npt.NDArray[np.uint8]], Tensor],
    encode_text: Callable[[Sequence[str]], Tensor],
) -> DecouplingFeatures:
    """Run the towers over ``photos`` uint8 [N, S, S, 3] and their ``captions``; the faults are made before scaling."""
    faults = [rungs[RUNG - 1] for rungs in UNSEEN.values()]
    clean = encode(np.stack([scaled(photo, side) for photo in photos]))
    faulty = [encode(np.stack([scaled(fault(photo), side) for photo in photos[:FAULTY]])) for fault in faults]
    return DecouplingFeatures(clean, torch.stack(faulty), encode_text(captions))


@torch.no_grad()
def decoupling(
    features: DecouplingFeatures,
    rated: Tensor,
    opinions: Callable[[npt.NDArray[np.floating]], Mapping[str, float]],
    pair: Tensor,
    heads: Mapping[str, nn.Module],
) -> dict[str, dict[str, float]]:
    """Numbers for each of ``heads``, modules from tower features to embeddings.

    ``opinions`` says how scores of ``rated`` [R, D] agree with people; its "mean" for the scores by ``pair`` [2, D]
    counts. ``caption`` and ``caption, faulty``: share of photos whose own caption is among the nearest 5. ``moved``:
    mean move (1 - cosine) by a fault, in units of the move to another photo.
    """
    table = {}
    for name, head in heads.items():
        clean, faulty = F.normalize(head(features.clean), dim=-1), F.normalize(head(features.faulty), dim=-1)
        count = faulty.shape[1]
        score = F.normalize(head(rated), dim=-1) @ (pair[0] - pair[1])
        found = [retrieval(embedded, features.captions[:count])["recall@5"] for embedded in (clean[:count], *faulty)]
        moved = movement(torch.cat([clean[None, :count], faulty]), tuple(UNSEEN))
        table[name] = {
            "opinions": opinions(score.numpy())["mean"],
            f"caption of {len(clean):,}": retrieval(clean, features.captions)["recall@5"],
            f"caption of {count:,}": found[0],
            f"caption of {count:,}, faulty": float(np.mean(found[1:])),
            "moved": moved["ratio"],
        }
    return table


def to_markdown(table: Mapping[str, Mapping[str, float]]) -> str:
    """A page with the table and how to read it."""
    columns = list(next(iter(table.values())))
    rows = [[name, *(f"{row[column]:.3f}" for column in columns)] for name, row in table.items()]
    return (
        "# Decoupling on what people said and on faults not trained on\n\n"
        + grid(("embedding", *columns), rows)
        + "\n- opinions: mean of the subsets' SRCC on BIQ2021's validation split, scored by the antonyms; the "
        "projectors' step was chosen there.\n"
        "- caption of N: share of Flickr8k Test photos whose own human caption is among the nearest 5 of N.\n"
        f"- faulty: the same photos with faults of {len(UNSEEN)} kinds that training never made "
        f"({', '.join(UNSEEN)}; rung {RUNG} of 5).\n"
        "- moved: how far such a fault moves the embedding (1 - cosine), in units of the move to another photo.\n\n"
        "Decoupled embeddings do all of this:\n\n" + grid(("what", "found", "wanted", ""), _verdicts(table))
    )


def _verdicts(table: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    tower, perceptual, semantic = table["tower"], table["perceptual"], table["semantic"]
    opinions, *_, clean, faulty, moved = tower  # "caption of N" is one column where all photos are few

    def line(wanted: str, found: float, bound: float, *, above: bool) -> list[str]:
        met = found >= bound if above else found <= bound
        return [wanted, f"{found:.3f}", f"{'>=' if above else '<='} {bound:.3f}", "yes" if met else "**no**"]

    return [
        line("the perceptual one follows opinions as the tower does", perceptual[opinions], 0.99 * tower[opinions],
             above=True),
        line("it finds less than half of the captions", perceptual[clean], 0.5 * tower[clean], above=False),
        line("the semantic one finds them as the tower does", semantic[clean], 0.9 * tower[clean], above=True),
        line("and those of faulty photos too", semantic[faulty], tower[faulty], above=True),
        line("it follows opinions less than half as far", semantic[opinions], 0.5 * perceptual[opinions], above=False),
        line("a fault moves it less than the perceptual one", semantic[moved], perceptual[moved], above=False),
    ]  # fmt: skip
