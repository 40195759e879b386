"""``declip benchmark``: how fast this machine scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from declip_runtime.benchmark import Row, file_rows, model_rows, scorable, to_csv, to_markdown
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import UsageError
from declip_runtime.machine import describe_machine

from .options import THREADS, engine_option
from .output import open_output, require_place, standard_output
from .paths import find_images, require_images
from .progress import loading, working
from .say import say
from .screen import draw
from .text import count, visible

BATCHES = (1, 4, 16, 64)
_WRITERS = {".csv": to_csv, ".md": to_markdown}
_TEXT_COLUMNS = ("what", "backend", "precision")


@click.command("benchmark")
@click.argument("photos", nargs=-1)
@engine_option
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=BATCHES, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="For each row."
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help=THREADS)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write a file: .csv or .md.")
def command(
    photos: tuple[str, ...],
    engine: str | None,
    batches: tuple[int, ...],
    seconds: float,
    threads: int | None,
    output: Path | None,
) -> None:
    """Measure how fast this machine scores.

    The model alone, by batch size, on every backend and precision that there is here; and with PHOTOS (files or
    folders) from files to scores; those that cannot be scored are left out. Run it on a machine that does nothing else.
    """
    if output is not None and output.suffix.lower() not in _WRITERS:
        raise UsageError(f"the format of {output} does not follow from its name. Use one of {', '.join(_WRITERS)}.")
    if missing := [path for path in photos if not Path(path).exists()]:
        raise UsageError(f"{', '.join(missing)} does not exist. Name photos or folders with photos.")
    if output is not None:
        require_place(output)
    file = EngineFile.open(engine or bundled_engine())
    files = _scorable(file, photos, threads) if photos else []
    machine: Row = {"engine": file.manifest.name, "engine id": file.id[:12], **describe_machine()}
    measured = model_rows(file, batches, seconds=seconds, threads=threads, tell=say)
    if files:
        measured = chain(measured, file_rows(file, files, seconds=seconds, threads=threads))
    rows = list(_announced(measured))
    page = _page(rows, machine)
    draw(standard_output(), lambda _: page)
    if output is not None:
        with open_output(output) as stream:
            stream.write(_WRITERS[output.suffix.lower()]([{**row, **machine} for row in rows]).encode())


def _scorable(engine: EngineFile, photos: Sequence[str], threads: int | None) -> list[str]:
    found = find_images(photos, recursive=True)
    require_images(found, photos)
    with loading():
        files, reasons = scorable(engine, found.images, threads=threads)
    if not files:
        raise UsageError(f"none of {count(len(reasons), 'file')} can be scored. The first: {reasons[0]}")
    if reasons:
        say(f"left out {len(reasons):,} of {count(len(found.images), 'file')}, not to be scored; first: {reasons[0]}")
    return files


def _announced(rows: Iterator[Row]) -> Iterator[Row]:
    """Say on standard error, in a terminal, how far it is: a row takes seconds, a large engine a minute to load."""
    with working("measuring") as status:
        for number, row in enumerate(rows, 1):
            status.update(f"{count(number, 'row')} measured, last: {row['what']}, {row['backend']} {row['precision']}")
            yield row


def _page(rows: Sequence[Row], machine: Row) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0]:
        table.add_column(name, justify="left" if name in _TEXT_COLUMNS else "right")
    best = max(float(row["images/s"]) for row in rows if row["what"] == rows[0]["what"])
    for row in rows:
        cells = (f"{v:,}" if isinstance(v, int | float) else visible(v) for v in row.values())
        table.add_row(*map(Text, cells), style="bold" if row["images/s"] == best else None)
    facts = [Text.assemble((f"{n}: ", "dim"), visible(str(value))) for n, value in machine.items() if value != ""]
    return Group(table, *facts)
