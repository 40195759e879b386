"""The results as files: a Markdown page for people, the table as CSV, every picture as JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from declip_training.markdown import plain, plain_grid

from .conditions import COLUMNS as CONDITION_COLUMNS
from .conditions import CONTROLS
from .study import STAND_IN, USER_STUDY
from .summary import DIFFERENCE, MEASURES, Estimate, Picture, Row

COLUMNS = (
    "control", "scale", "method", "conditions", "pictures",
    *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")),
)  # fmt: skip
HEADINGS = ("control", "strength", "method", "n", "SC", "PC", "CC", "OF", "leak")

_FAILURES_NAMED = 20

_EXPLANATION = f"""\
- **SC**, semantic consistency: cosine of the picture with its semantic condition, image or text, in the judge's
  semantic space. **PC**, perceptual consistency: the same with the perceptual condition in the perceptual space.
  **CC** is the mean of both.
- **OF**, overall quality: a score in 0..1 of an engine that rates photos, and was not validated on generated ones.
- **leak**: cosine of the picture with the reference image in the *other* space: what the picture shows with an image
  that was to give the look only, how it looks with one that was to give the content only. Less is better; with two
  images it is the mean of both.
- A cosine with a text is a smaller number than one with an image, whatever was generated. So SC and PC do not stand on
  one scale, rows of different control are not compared with each other, and what counts is the difference of methods.
- n conditions; their seeds are averaged first. In brackets the central 95 % of a percentile bootstrap over conditions.
  **{DIFFERENCE}** is paired: the same conditions, strengths and seeds. Fewer than 3 conditions of a type
  of control have no interval, and with fewer than some 20 it is too narrow.
- The same strength need not be the same effect. Compare several strengths before saying that one method is better.
"""


@dataclass(frozen=True)
class Results:
    """Everything that the files say: ``notes`` are sentences, ``made_with`` names and values."""

    rows: Sequence[Row]
    pictures: Sequence[Picture]
    notes: Sequence[str]
    made_with: Mapping[str, str]

    @property
    def failed(self) -> list[Picture]:
        """Pictures that could not be generated or measured."""
        return [picture for picture in self.pictures if picture.measures is None]


def to_markdown(results: Results, sheets: Iterable[str] = ()) -> str:
    """The page: what it is not, the table, how to read it, notes, failures, what it was made with, and ``sheets``."""
    parts = ["# Does the control work?\n", f"**{STAND_IN}**\n"]
    parts += [plain_grid(HEADINGS, [table_cells(row) for row in results.rows]), _EXPLANATION]
    parts += ["## The paper's user study\n", _study(), _USER_STUDY_NOTE]
    if results.notes:
        parts += ["## Notes\n", "".join(f"- {plain(note)}\n" for note in results.notes)]
    if failed := results.failed:
        named = [(picture.planned.file, picture.error) for picture in failed[:_FAILURES_NAMED]]
        more = f"{len(failed) - _FAILURES_NAMED} more are in pictures.jsonl.\n" if len(failed) > len(named) else ""
        parts += ["## Failed\n", plain_grid(("picture", "reason"), named), more]
    parts += ["## Made with\n", plain_grid(("", ""), results.made_with.items())]
    if shown := [f"![{name}]({name})\n" for name in sheets]:
        parts += ["## Pictures\n", "One seed of every condition.\n", *shown]
    return "\n".join(parts)


def to_csv(rows: Sequence[Row]) -> str:
    """A line a row, every digit; cells of intervals that there are not are empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        place = {"control": row.control, "scale": f"{row.scale:g}", "method": row.method}
        counts = {"conditions": row.n, "pictures": row.pictures}
        numbers: dict[str, str] = {}
        for name, estimate in row.estimates.items():
            low, high = estimate.interval or (None, None)
            ends = (("", estimate.mean), ("_low", low), ("_high", high))
            numbers |= {f"{name}{end}": "" if value is None else repr(value) for end, value in ends}
        writer.writerow({**place, **counts, **numbers})
    return text.getvalue()


def to_json_lines(pictures: Sequence[Picture]) -> str:
    """An object a picture: its condition in the file's columns, how it was made, its measures, or why it has none."""
    lines = []
    for picture in pictures:
        planned, measures = picture.planned, picture.measures
        condition = {**dict.fromkeys(CONDITION_COLUMNS), **planned.condition.columns}
        made = {"control": planned.condition.control, "method": planned.method, "scale": planned.scale}
        names = (*MEASURES, "leak_semantic", "leak_perceptual")
        measured = {name: None if measures is None else getattr(measures, name) for name in names}
        line = {**condition, **made, "seed": planned.seed, "file": planned.file, **measured}
        lines.append(json.dumps({**line, "error": picture.error or None}, allow_nan=False))
    return "".join(f"{line}\n" for line in lines)


def table_cells(row: Row) -> tuple[str, ...]:
    """Cells in the order of HEADINGS."""
    numbers = [_figure(row.estimates[name], signed=row.method == DIFFERENCE) for name in MEASURES]
    return (row.control, f"{row.scale:g}", row.method, str(row.n), *numbers)


def _figure(estimate: Estimate, *, signed: bool) -> str:
    form = "+.3f" if signed else ".3f"
    if estimate.interval is None:
        return f"{estimate.mean:{form}}"
    low, high = estimate.interval
    return f"{estimate.mean:{form}} ({low:{form}} to {high:{form}})"


def _study() -> str:
    rows = [(name, f"{cc:.3f}", f"{of:.3f}") for name, (cc, of) in USER_STUDY.items()]
    return plain_grid(("generated by", "CC of people", "OF of people"), rows)


_USER_STUDY_NOTE = f"""\
Table 5 of arXiv 2503.02206, for the direction only: ten people scored from 1 to 5 the pictures of 100 pairs of image
and text ({CONTROLS[0]}, {CONTROLS[1]}).
"""
