"""Results for people: lines of a table with the paper's numbers among them, and what has to be known to read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .logistic import PARAMETERS
from .paper import OVERALL, Published, published
from .results import Result

HEADINGS = (
    "data set", "split", "opinion", "engine", "score", "n",
    "SRCC", "95 %", "KRCC", "95 %", "PLCC", "95 %", "PLCC fitted", "RMSE",
)  # fmt: skip
"""Of the cells of a ``Line``."""


PAPERS_SCORE = "quality"
"""The score with the words of the paper's overall numbers."""


@dataclass(frozen=True)
class Line:
    """Cells in the order of HEADINGS, empty where there is no number; ``measured`` False for the paper's."""

    cells: tuple[str, ...]
    measured: bool


def table_lines(results: Sequence[Result]) -> list[Line]:
    """One line a result, and after those of one data set and opinion what the paper has on it."""
    lines: list[Line] = []
    for here, paper in beside_the_paper(results):
        lines += [Line(_measured(result), True) for result in here]
        title, target = here[0].collection.dataset.title, here[0].target
        lines += [
            Line((title, "", target, source(p), "", "", short(p.srcc), "", "", "", short(p.plcc), "", "", ""), False)
            for p in paper
        ]
    return lines


def beside_the_paper(results: Sequence[Result]) -> Iterator[tuple[list[Result], tuple[Published, ...]]]:
    """Results of all engines on one data set and opinion, with what the paper has on it."""
    for _, grouped in groupby(results, key=lambda r: (r.collection.dataset.name, r.collection.split, r.target)):
        here = list(grouped)
        yield here, published(here[0].collection.dataset.name, here[0].target)


def notes(results: Sequence[Result]) -> list[str]:
    """Photos left out, fits that failed or fall, constant scores; one sentence each."""
    found: list[str] = []
    for result in results:
        title, agreement = result.collection.dataset.title, result.agreement
        where = f"{title}, {result.target}, {result.engine}"
        if result.target == OVERALL and result.missing:
            found.append(f"{title}: without {_images(result.missing)} of its table, not on disk")
        if result.target == OVERALL and result.failed:
            found.append(f"{title}: without {_images(result.failed)} that could not be scored")
        if math.isnan(agreement.srcc):
            found.append(f"{where}: scores or opinions are all the same, so there is no correlation")
        elif agreement.n < PARAMETERS:
            found.append(f"{where}: too few photos for a logistic fit, so there is no fitted PLCC and no RMSE")
        elif agreement.fit is None:
            found.append(f"{where}: the logistic fit did not converge, so there is no fitted PLCC and no RMSE")
        elif agreement.fit.falls:
            hidden = "that the score points the wrong way" if agreement.srcc < 0 else "that the scores' order says more"
            found.append(f"{where}: the fitted curve falls (*), so its PLCC hides {hidden}")
        if result.target == OVERALL and result.score != PAPERS_SCORE and published(result.collection.dataset.name):
            found.append(f"{where}: compared is {result.score!r}; the paper's numbers are of Good photo. / Bad photo.")
    return list(dict.fromkeys(found))


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def short(value: float | None) -> str:
    """Three decimals; "-" for NaN, nothing for None."""
    return "" if value is None else "-" if math.isnan(value) else f"{value:.3f}"


def source(p: Published) -> str:
    """How a row of the paper is called beside engines."""
    return f"paper, table {p.table}: {p.model}"


def _measured(result: Result) -> tuple[str, ...]:
    a, collection = result.agreement, result.collection
    fitted = short(a.plcc_fitted) + ("*" if a.fit is not None and a.fit.falls else "")
    rmse = "-" if math.isnan(a.rmse) else f"{a.rmse:.4g}"
    return (
        collection.dataset.title, collection.split, result.target, result.engine, result.score, f"{a.n:,}",
        short(a.srcc), _interval(a.srcc_interval), short(a.krcc), _interval(a.krcc_interval),
        short(a.plcc), _interval(a.plcc_interval), fitted, rmse,
    )  # fmt: skip


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None or math.isnan(bounds[0]) else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
