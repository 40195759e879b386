"""Does an attribute's score follow its attribute, and follow it more than anything else?

Each attribute has ladders of its own (``attribute_ladders``). The table says how every ladder moves every score; an
attribute is validated where its own ladders move it monotonically the right way and no other ladder moves it as far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_runtime.images import open_image
from declip_runtime.scorer_manifest import ScoreKind

from .attribute_ladders import ATTRIBUTE_LADDERS, ATTRIBUTES
from .ladders import Pixels, climb

BAR = 0.95
MINIMUM = 3
"""Photos; the spread of fewer is no measure."""


@dataclass(frozen=True)
class Response:
    """What one ladder does to one score, mean over ``photos``.

    ``rank`` is Spearman's correlation of rung and score. ``change`` is the score on the strongest rung less that of the
    untouched photo, in standard deviations of the score over untouched photos; NaN where it has no spread.
    """

    rank: float
    change: float
    photos: int


@dataclass(frozen=True)
class Attribute:
    """How a score answers to every ladder, and the verdict.

    ``ranks`` and ``moves`` map its own ladders to their rank and change in the direction that ``kind`` asks for (1 is a
    perfect rank). Every other ladder is compared with the own ladder that goes the same way; where several do, or none
    does, with the one that moves the score least. ``rival`` comes nearest to it or furthest beyond.
    """

    name: str
    kind: ScoreKind
    responses: Mapping[str, Response]
    ranks: Mapping[str, float]
    moves: Mapping[str, float]
    rival: str
    selective: bool

    @property
    def monotone(self) -> bool:
        """Each ladder of its own moves it as the bar asks."""
        return all(rank >= BAR for rank in self.ranks.values())

    @property
    def validated(self) -> bool:
        """Monotone and selective."""
        return self.monotone and self.selective


@dataclass(frozen=True)
class Selectivity:
    """The attributes that an engine has, in the order of ATTRIBUTES, and the names of those that it lacks."""

    attributes: tuple[Attribute, ...]
    absent: tuple[str, ...]


def measure(
    score: Callable[[list[Pixels]], Mapping[str, npt.NDArray[np.floating]]],
    kinds: Mapping[str, ScoreKind],
    photos: Sequence[Path],
) -> Selectivity:
    """The selectivity of those scores of ``kinds`` (name to kind, as the manifest has them) that are attributes.

    ``score`` takes RGB photos uint8 [H, W, 3] and returns at least these scores, one number a photo each. A ladder that
    leaves a photo as it is (colour, where there is none) is not judged by it. Raises TrainingError for fewer than 3
    photos and where a ladder changes none, ImageError for a photo that cannot be read.
    """
    names = [name for name in ATTRIBUTES if name in kinds]
    absent = tuple(name for name in ATTRIBUTES if name not in kinds)
    if not names:
        return Selectivity((), absent)
    if len(photos) < MINIMUM:
        raise TrainingError(f"{len(photos)} photos cannot show selectivity. Give at least {MINIMUM}.")
    untouched: list[npt.NDArray[np.float64]] = []
    ranks: dict[str, list[list[float]]] = {name: [] for name in ATTRIBUTE_LADDERS}
    changes: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in ATTRIBUTE_LADDERS}
    for path in photos:
        clean = np.asarray(open_image(path))
        own = _scores(score, names, [clean])[0]
        untouched.append(own)
        for name, ladder in ATTRIBUTE_LADDERS.items():
            rungs = [rung(clean) for rung in ladder.rungs]
            if np.array_equal(rungs[-1], clean):
                continue
            values = np.concatenate([own[None], _scores(score, names, rungs)])
            ranks[name].append([climb(column) for column in values.T])
            changes[name].append(values[-1] - values[0])
    unmoved = [name for name, each in changes.items() if not each]
    if unmoved:
        raise TrainingError(
            f"none of {len(photos)} photos can be made {unmoved[0]}. Give photos with colour and detail."
        )
    deviation = np.std(untouched, axis=0)
    spread = np.where(deviation > 0, deviation, np.nan)
    attributes = []
    for column, attribute in enumerate(names):
        responses = {
            name: Response(
                rank=float(np.mean([rank[column] for rank in ranks[name]])),
                change=float(np.mean([change[column] for change in changes[name]]) / spread[column]),
                photos=len(changes[name]),
            )
            for name in ATTRIBUTE_LADDERS
        }
        attributes.append(_judged(attribute, kinds[attribute], responses))
    return Selectivity(tuple(attributes), absent)


def _scores(
    score: Callable[[list[Pixels]], Mapping[str, npt.NDArray[np.floating]]], names: Sequence[str], images: list[Pixels]
) -> npt.NDArray[np.float64]:
    """Float64 [images, names]."""
    scored = score(images)
    return np.stack([np.asarray(scored[name], np.float64) for name in names], axis=1)


def _judged(attribute: str, kind: ScoreKind, responses: Mapping[str, Response]) -> Attribute:
    directions = {
        name: ladder.direction(kind) for name, ladder in ATTRIBUTE_LADDERS.items() if ladder.attribute == attribute
    }
    moves = {name: sign * responses[name].change for name, sign in directions.items()}

    def excess(other: str) -> float:
        change = responses[other].change
        same_way = [moves[name] for name, sign in directions.items() if sign * change > 0]
        return abs(change) - min(same_way or moves.values())

    rival = max((name for name in responses if name not in directions), key=excess)
    return Attribute(
        name=attribute,
        kind=kind,
        responses=responses,
        ranks={name: sign * responses[name].rank for name, sign in directions.items()},
        moves=moves,
        rival=rival,
        selective=excess(rival) < 0,  # not so where the score has no spread: NaN is below nothing
    )
