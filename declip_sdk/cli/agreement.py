"""What ``declip evaluate`` shows and writes: numbers beside those of the paper, files, the list of data sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .output import writing
from .say import say
from .screen import printable, separator

if TYPE_CHECKING:
    from declip_training.evaluation.results import Result

_INTERVAL_WIDTH = 126  # cells that a terminal needs for the intervals beside the numbers
_FIRST_NUMBER = 3  # of a line's cells, after the place: engine, score, n, then numbers


class Failure(NamedTuple):
    """One image that one engine could not score."""

    dataset: str
    engine: str
    image: str
    error: str


def agreement_page(results: Sequence[Result], console: Console) -> RenderableType:
    """A block for each data set and opinion: engines, then the paper, one number below the other."""
    from declip_training.evaluation.tables import HEADINGS, notes, table_lines

    wide = console.width >= _INTERVAL_WIDTH
    columns = [i for i, name in enumerate(HEADINGS) if i >= _FIRST_NUMBER and (wide or name != "95 %")]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i in columns:
        first = i == _FIRST_NUMBER
        table.add_column(HEADINGS[i], justify="left" if i < _FIRST_NUMBER + 2 else "right", no_wrap=not first)
    for _, block in groupby(table_lines(results), key=lambda line: (line.cells[0], line.cells[2])):
        lines = list(block)
        place = separator(console).join(lines[0].cells[:_FIRST_NUMBER])
        table.add_row(*[""] * len(columns))
        table.add_row(Text(printable(place, console), style="bold cyan"))
        for line in lines:
            cells = [Text(printable(line.cells[i], console)) for i in columns]
            table.add_row(*cells, style=None if line.measured else "dim")
    told = [Text(printable(note, console), style="dim italic") for note in notes(results)]
    return Group(table, *([Text(""), *told] if told else []))


def write_results(folder: Path, results: Sequence[Result], failures: Sequence[Failure]) -> None:
    """results.csv, results.md, a picture a data set, and failed.csv where something failed; each complete or not."""
    from declip_training.evaluation.paper import OVERALL
    from declip_training.evaluation.plots import scatter
    from declip_training.evaluation.report_files import to_csv, to_markdown

    pictures = {
        f"{name}.png": scatter(list(here))
        for name, here in groupby(
            (result for result in results if result.target == OVERALL), key=lambda r: r.collection.dataset.name
        )
    }
    texts = {"results.csv": to_csv(results), "results.md": to_markdown(results, pictures)}
    if failures:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([Failure._fields, *failures])
        texts["failed.csv"] = text.getvalue()
    else:
        with writing(folder / "failed.csv"):
            (folder / "failed.csv").unlink(missing_ok=True)  # of a run before
    files = {name: text.encode("utf-8", "surrogateescape") for name, text in texts.items()} | pictures
    for name, content in files.items():
        _replace(folder / name, content)
    say(f"written to {folder}: {', '.join(files)}")


def _replace(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all; a plot of a run before goes, unlike a photo elsewhere."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            partial.write_bytes(content)
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def data_sets() -> str:
    """Every data set that can be read: what it expects where, direction, splits, and how to get it."""
    from declip_training.evaluation.datasets import DATASETS

    blocks = []
    for dataset in DATASETS.values():
        facts = {
            "expects": "\n            ".join(dataset.layout),
            "opinion": dataset.scale,
            "splits": ", ".join(dataset.splits) or "none published: everything is evaluated",
            "source": dataset.source,
            "note": dataset.note,
        }
        lines = [f"  {name:8}  {value}" for name, value in facts.items() if value]
        blocks.append("\n".join([f"{dataset.name}: {dataset.title}", *lines]))
    return "\n\n".join(blocks)
