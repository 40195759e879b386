"""Prompts for attributes: words and a learned context that follow one attribute of a photo and no other.

CoOp (arXiv 2503.02206, its ref. [66]) on ladders instead of opinions: nobody rated these attributes on our photos, but
how a ladder moves them is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from .coop import Loss
from .data.attributes import Attribute
from .losses import antonym_logit, plcc_loss

RISE = 4.0
"""How far the logit shall move over a whole ladder, in standard deviations of the untouched photos' logit."""
STILLNESS = 0.3


@dataclass(frozen=True)
class ChangeLadders:
    """Ladders through the frozen tower and the perceptual projector.

    ``embedded`` float32 [L, R, D] normalised, untouched photo first; ``kinds`` [L] are keys of CHANGES;
    ``severities`` float32 [R] from 0; ``measured`` has float32 [L] for each attribute measured on the untouched photos.
    """

    embedded: Tensor
    kinds: npt.NDArray[np.str_]
    severities: Tensor
    measured: Mapping[str, Tensor]


def attribute_loss(
    ladders: ChangeLadders, attribute: Attribute, scale: float, *, each: int = 24, seed: int = 17
) -> Loss:
    """What the embedded pair of ``attribute`` must satisfy, on ``each`` ladders of every kind, drawn each step.

    Its own ladders move the logit in their direction and the others leave it where it is, in standard deviations of the
    untouched photos' logit, as ``selectivity`` counts; of the others those that move it most count most. Untouched
    photos come in the order of what is measured, where something is.
    """
    kinds = list(dict.fromkeys(ladders.kinds))
    places = [np.nonzero(ladders.kinds == kind)[0] for kind in kinds]
    signs = torch.tensor([float(attribute.moved_by.get(str(kind), 0)) for kind in kinds])
    left = torch.tensor([attribute.left_by(str(kind)) for kind in kinds])
    steps = RISE * ladders.severities.diff()
    measured = ladders.measured.get(attribute.name)

    def loss(pairs: Tensor, step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        chosen = torch.from_numpy(np.stack([rng.choice(p, min(each, len(p)), replace=False) for p in places]))
        embedded = ladders.embedded[chosen.flatten()].flatten(0, 1)
        logit = antonym_logit(embedded, pairs[0], scale).view(*chosen.shape, -1)
        logit = logit / (logit[..., 0].std() + 1e-3)
        rising = F.relu(steps - signs[:, None, None] * logit.diff()).mean(dim=(1, 2))[signs != 0]
        strayed = (logit - logit[..., :1])[left]
        still = strayed.square().mean(dim=(1, 2)), strayed[..., -1].mean(dim=1).square()
        total = rising.mean() + rising.max()
        if len(strayed):
            total = total + STILLNESS * torch.stack([part.square().mean().sqrt() for part in still]).sum()
        if measured is not None:
            total = total + plcc_loss(logit[..., 0].flatten(), measured[chosen.flatten()])
        return total

    return loss


@torch.no_grad()
def selectivity(ladders: ChangeLadders, attribute: Attribute, pairs: Tensor, scale: float) -> dict[str, float]:
    """How well the embedded pair follows ``attribute`` and it alone.

    ``own`` is the least mean Spearman correlation (in its direction) of the kinds that move it. ``moved`` is the least
    mean change that one of these kinds makes over the whole ladder, ``strays`` the greatest that any other makes, both
    in standard deviations of the untouched photos' logit. ``choice`` is what to maximise.
    """
    logit = antonym_logit(ladders.embedded.flatten(0, 1), pairs[0], scale).view(len(ladders.kinds), -1).numpy()
    spread = float(logit[:, 0].std()) + 1e-6
    order = np.arange(logit.shape[1])
    spearman, own, others = [], [], []
    for kind in dict.fromkeys(ladders.kinds):
        rows = logit[ladders.kinds == kind]
        change = float((rows[:, -1] - rows[:, 0]).mean()) / spread
        sign = attribute.moved_by.get(str(kind), 0)
        if sign:
            moving = [row for row in rows if np.ptp(row) > 0]  # colours cannot fade in a grey photo
            spearman.append(float(np.mean([stats.spearmanr(order, sign * r).statistic for r in moving] or 0.0)))
            own.append(sign * change)
        elif attribute.left_by(str(kind)):
            others.append(abs(change))
    result = {"own": min(spearman), "moved": min(own), "strays": max(others, default=0.0)}
    moved, strays = result["moved"], result["strays"]
    result["choice"] = result["own"] + (moved - strays) / (abs(moved) + strays + 1e-6)
    return result


def percentiles(raw: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rank of each value [N] among all, 0..1; ties share their mean rank."""
    ranks: npt.NDArray[np.float64] = (stats.rankdata(raw) - 0.5) / len(raw)
    return ranks
