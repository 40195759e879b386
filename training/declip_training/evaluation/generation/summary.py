"""From measured pictures to numbers: means of both methods and their difference, with intervals over conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_training.evaluation.bootstrap import interval
from declip_training.evaluation.metrics import MINIMUM

from .conditions import CONTROLS
from .measures import Measures
from .plan import DP, IP, METHODS, Planned

MEASURES = ("sc", "pc", "cc", "of", "leak")
"""What a row has an estimate of; attributes of ``Measures``."""

ALL = "all"
DIFFERENCE = f"{DP} - {IP}"
_ELEMENTS_AT_ONCE = 2_000_000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Picture:
    """A picture that there had to be: what was measured, or why nothing was (``error``)."""

    planned: Planned
    measures: Measures | None
    error: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean over conditions; ``interval`` is the central 95 % of a bootstrap, None where it would say nothing."""

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """One method, or the difference of both, by one type of control (or ALL) at one strength.

    ``estimates`` are by MEASURES. They rest on ``n`` conditions and on ``pictures`` by each method.
    """

    control: str
    scale: float
    method: str
    n: int
    pictures: int
    estimates: Mapping[str, Estimate]


def summarise(pictures: Sequence[Picture], *, draws: int = 1000, seed: int = 0) -> list[Row]:
    """Rows of both methods and of their paired difference, by control and strength; ALL controls last.

    A seed of a condition counts where both methods have its picture at that strength; seeds are averaged within their
    condition. Conditions are drawn with replacement within their type of control, the same for both methods. ``draws``
    0 gives no intervals, nor do fewer than 3 conditions of a type.

    Raises TrainingError where no condition has a picture by both methods.
    """
    rows: list[Row] = []
    found = {picture.planned.condition.control for picture in pictures}
    controls = [control for control in CONTROLS if control in found]
    for control in (*controls, *([ALL] if len(controls) > 1 else [])):
        for scale in dict.fromkeys(picture.planned.scale for picture in pictures):
            chosen = [
                picture
                for picture in pictures
                if picture.planned.scale == scale and control in (ALL, picture.planned.condition.control)
            ]
            rows += _rows(control, scale, chosen, draws, seed)
    if not rows:
        reason = next((picture.error for picture in pictures if picture.error), "there are no conditions")
        raise TrainingError(f"no condition has a picture by both methods that could be measured: {reason}")
    return rows


def _rows(control: str, scale: float, pictures: Sequence[Picture], draws: int, seed: int) -> list[Row]:
    pairs = _pairs(pictures)
    if not pairs:
        return []
    controls = {picture.planned.condition.name: picture.planned.condition.control for picture in pictures}
    strata = np.array([controls[name] for name in pairs])
    # [method, condition, measure]
    values = np.array(
        [
            [
                np.mean([[getattr(m[method], name) for name in MEASURES] for m in seeds], axis=0)
                for seeds in pairs.values()
            ]
            for method in METHODS
        ],
        np.float64,
    )
    rows = {**dict(zip(METHODS, values, strict=True)), DIFFERENCE: values[0] - values[1]}
    count = sum(map(len, pairs.values()))
    estimates = {method: _estimates(own, strata, draws, seed) for method, own in rows.items()}
    return [
        Row(control, scale, method, len(pairs), count, dict(zip(MEASURES, own, strict=True)))
        for method, own in estimates.items()
    ]


def _pairs(pictures: Sequence[Picture]) -> dict[str, list[dict[str, Measures]]]:
    """By condition, the measures by method of those seeds for which both methods have some; none is empty."""
    found: dict[str, dict[int, dict[str, Measures]]] = {}
    for picture in pictures:
        if picture.measures is not None:
            seeds = found.setdefault(picture.planned.condition.name, {})
            seeds.setdefault(picture.planned.seed, {})[picture.planned.method] = picture.measures
    whole = {name: [by for by in seeds.values() if len(by) == len(METHODS)] for name, seeds in found.items()}
    return {name: seeds for name, seeds in whole.items() if seeds}


def _estimates(values: Values, strata: npt.NDArray[np.str_], draws: int, seed: int) -> list[Estimate]:
    """An estimate for each column of values [conditions, columns].

    Conditions are drawn within their stratum: cosines with texts and with images lie far apart, and how many there are
    of each is no accident.
    """
    means = [float(mean) for mean in values.mean(axis=0)]
    places = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    if not draws or min(map(len, places)) < MINIMUM:
        return [Estimate(mean, None) for mean in means]
    rng = np.random.default_rng(seed)
    sums = np.zeros((draws, values.shape[1]))
    step = max(1, _ELEMENTS_AT_ONCE // values.size)
    for own in places:
        for start in range(0, draws, step):
            rows = slice(start, min(start + step, draws))
            drawn = rng.integers(0, len(own), (rows.stop - rows.start, len(own)))
            sums[rows] += values[own[drawn]].sum(axis=1)
    return [Estimate(mean, interval(sums[:, i] / len(values))) for i, mean in enumerate(means)]
