"""Results as files: CSV with every digit for programs, a Markdown page for people."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from declip_training.markdown import plain, plain_grid

from .logistic import PARAMETERS
from .results import Result
from .tables import HEADINGS, beside_the_paper, notes, short, source, table_lines

COLUMNS = (
    "dataset", "split", "target", "group", "source", "score", "n", "failed", "missing",
    "srcc", "srcc_low", "srcc_high", "krcc", "krcc_low", "krcc_high", "plcc", "plcc_low", "plcc_high",
    "plcc_fitted", "rmse", "fit",
    "engine_id", "backend", "precision", "decode", "views",
)  # fmt: skip
CONSTANT, TOO_FEW, NO_FIT, FALLS, RISES = "constant", "too few photos", "did not converge", "falls", "rises"
"""Values of the column ``fit``."""

_EXPLANATION = """\
PLCC is of the raw scores; PLCC fitted and RMSE come after the four-parameter logistic curve (VQEG). Intervals are the
central 95 % of a percentile bootstrap over photos, or over references where every photo was made from one. The paper
states neither its splits nor whether it fitted a curve.
"""


def to_csv(results: Sequence[Result]) -> str:
    """A row a result, then rows of its groups; after those of one data set and opinion the rows of the paper."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for here, paper in beside_the_paper(results):
        for result in here:
            writer.writerows(_records(result))
        for p in paper:
            place = {"dataset": here[0].collection.dataset.name, "target": here[0].target, "source": source(p)}
            writer.writerow({**place, "srcc": _exact(p.srcc), "plcc": _exact(p.plcc)})
    return text.getvalue()


def to_markdown(results: Sequence[Result], figures: Iterable[str] = ()) -> str:
    """SRCC side by side, every number, groups, notes, what the scores were made with, and ``figures`` by file name."""
    parts = ["# Agreement with people\n", "## SRCC side by side\n", _side_by_side(results)]
    parts += ["## All numbers\n", plain_grid(HEADINGS, [line.cells for line in table_lines(results)]), _EXPLANATION]
    groups = [
        (r.collection.dataset.title, r.engine, g.name, f"{g.n:,}", short(g.srcc)) for r in results for g in r.groups
    ]
    if groups:
        parts += ["## SRCC within groups\n", plain_grid(("data set", "engine", "group", "n", "SRCC"), groups)]
    if told := notes(results):
        parts += ["## Notes\n", "".join(f"- {plain(note)}\n" for note in told)]
    made = list(dict.fromkeys((r.engine, *(str(v) for v in r.identity.values())) for r in results))
    parts += ["## Made with\n", plain_grid(("label", *results[0].identity), made)]
    if plots := [f"![{name}]({name})\n" for name in figures]:
        parts += ["## Scores against opinions\n", *plots]
    return "\n".join(parts)


def _side_by_side(results: Sequence[Result]) -> str:
    engines = list(dict.fromkeys(r.engine for r in results))
    rows = []
    for here, paper in beside_the_paper(results):
        first = here[0]
        published = {p.model.partition(",")[0]: short(p.srcc) for p in paper}
        measured = {r.engine: short(r.agreement.srcc) for r in here}
        place = (first.collection.dataset.title, first.collection.split, first.target)
        rows.append((*place, *(published.get(m, "") for m in _MODELS), *(measured.get(e, "") for e in engines)))
    return plain_grid(("data set", "split", "opinion", *(f"paper: {m}" for m in _MODELS), *engines), rows)


_MODELS = ("CLIP", "DeCLIP", "DeCLIP + CoOp")


def _records(result: Result) -> list[dict[str, str]]:
    a, identity = result.agreement, result.identity
    place = {
        "dataset": result.collection.dataset.name, "split": result.collection.split, "target": result.target,
        "source": result.engine, "score": result.score, "engine_id": str(identity["engine"]),
        **{name: str(identity[name]) for name in ("backend", "precision", "decode", "views")},
    }  # fmt: skip
    srcc_low, srcc_high = a.srcc_interval or (None, None)
    krcc_low, krcc_high = a.krcc_interval or (None, None)
    plcc_low, plcc_high = a.plcc_interval or (None, None)
    numbers = {
        "srcc": a.srcc, "srcc_low": srcc_low, "srcc_high": srcc_high,
        "krcc": a.krcc, "krcc_low": krcc_low, "krcc_high": krcc_high,
        "plcc": a.plcc, "plcc_low": plcc_low, "plcc_high": plcc_high, "plcc_fitted": a.plcc_fitted, "rmse": a.rmse,
    }  # fmt: skip
    if a.fit is not None:
        fit = FALLS if a.fit.falls else RISES
    else:
        fit = CONSTANT if math.isnan(a.srcc) else TOO_FEW if a.n < PARAMETERS else NO_FIT
    counts = {"n": str(a.n), "failed": str(result.failed), "missing": str(result.missing), "fit": fit}
    whole = {**place, **counts, **{name: _exact(value) for name, value in numbers.items()}}
    return [whole, *({**place, "group": g.name, "n": str(g.n), "srcc": _exact(g.srcc)} for g in result.groups)]


def _exact(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))
