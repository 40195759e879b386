"""From scores and opinions to numbers: one result for each data set, opinion and engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import TrainingError

from .datasets import Collection
from .metrics import MINIMUM, Agreement, agreement, srcc
from .paper import OVERALL
from .scoring import Scored

MEAN_OF_GROUPS = "mean of groups"
FAULTS = {"noise"}
"""Attributes of which people like to see little, and whose opinions rise as there is less."""


@dataclass(frozen=True)
class Group:
    """A part of a data set: its number of photos and their SRCC, NaN where it has fewer than 3 or is constant."""

    name: str
    n: int
    srcc: float


@dataclass(frozen=True)
class Result:
    """Agreement of one engine's ``score`` with one opinion, ``target``: "overall" or the name of an attribute.

    ``groups`` end with the mean of those that have an SRCC: it is not flattered by groups that differ in level.

    ``predicted`` and ``opinions`` are what was compared, float64 [n]. ``failed`` photos could not be scored by some
    engine, ``missing`` ones are in the table and not on disk; neither is among the n.
    """

    collection: Collection
    target: str
    engine: str
    score: str
    identity: Mapping[str, Any]
    agreement: Agreement
    groups: tuple[Group, ...]
    predicted: npt.NDArray[np.float64]
    opinions: npt.NDArray[np.float64]
    failed: int
    missing: int


def compare(
    collection: Collection, scored: Mapping[str, Scored], score: Mapping[str, str], *, draws: int = 1000
) -> list[Result]:
    """Results of every engine on one data set: overall, and each attribute that an engine has a score of that name for.

    ``scored`` and ``score`` (the name of the score that the overall opinion is compared with) are by the engine's
    label. All engines are compared on the same photos: those that all of them could score.

    Raises TrainingError where fewer than 3 photos are left.
    """
    good = np.logical_and.reduce([s.good for s in scored.values()])
    photos = [photo for photo, kept in zip(collection.photos, good, strict=True) if kept]
    if len(photos) < MINIMUM:
        raise TrainingError(
            f"{collection.dataset.title} has {len(photos)} photos that could be scored, of {len(good)}. "
            f"At least {MINIMUM} are needed; look at the reasons above."
        )
    made_from = [str(photo.reference or "") for photo in photos]
    references = made_from if all(made_from) and len(set(made_from)) > 1 else None
    names = sorted({name for photo in photos for name in photo.attributes})
    opinions = {OVERALL: np.array([photo.score for photo in photos])}
    opinions |= {name: np.array([photo.attributes[name] for photo in photos]) for name in names}
    results = []
    for target, values in opinions.items():
        for label, scores in scored.items():
            name = score[label] if target == OVERALL else target
            if name not in scores.names:
                continue
            predicted = scores.values[good, scores.names.index(name)]
            results.append(
                Result(
                    collection,
                    target,
                    label,
                    name,
                    scores.identity,
                    agreement(predicted, values, references=references, draws=draws),
                    _groups(predicted, values, [p.group for p in photos]) if target == OVERALL else (),
                    predicted,
                    values,
                    failed=len(good) - len(photos),
                    missing=len(collection.missing),
                )
            )
    return results


def without_score(collection: Collection, scored: Mapping[str, Scored]) -> dict[str, list[str]]:
    """By engine, the attributes of the data set that it has no score of that name for."""
    names = sorted({name for photo in collection.photos for name in photo.attributes})
    lacking = {label: [name for name in names if name not in scores.names] for label, scores in scored.items()}
    return {label: attributes for label, attributes in lacking.items() if attributes}


def opposed(collection: Collection, engine: EngineFile) -> list[str]:
    """Scores of ``engine`` that fall where the opinions of their name rise: people judge freedom from noise."""
    faults = {spec.name for spec in engine.scorer.scores if spec.kind == "degree"} & FAULTS
    return sorted(faults & {name for photo in collection.photos for name in photo.attributes})


def _groups(
    predicted: npt.NDArray[np.float64], opinions: npt.NDArray[np.float64], labels: Sequence[str]
) -> tuple[Group, ...]:
    """SRCC within each group and their mean; nothing where there are not two groups."""
    of = np.array(labels)
    groups = []
    for name in np.unique(of):
        x, y = predicted[of == name], opinions[of == name]
        varied = len(x) >= MINIMUM and np.ptp(x) > 0 and np.ptp(y) > 0
        groups.append(Group(str(name), len(x), srcc(x, y) if varied else float("nan")))
    if len(groups) < 2:
        return ()
    known = [group.srcc for group in groups if not np.isnan(group.srcc)]
    return (*groups, Group(MEAN_OF_GROUPS, len(predicted), float(np.mean(known)) if known else float("nan")))
