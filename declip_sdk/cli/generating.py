"""What ``declip generate`` does once everything is checked: single pictures, a sheet of them, or a file of jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.grid import Setting, generate_grid
from declip_runtime.generation.job_runner import run_jobs
from declip_runtime.generation.jobs import Job, read_jobs
from declip_runtime.generation.progress import Step
from declip_runtime.generation.record import FORMAT, read_record, save, stamp
from declip_runtime.generation.request import make_request
from declip_runtime.generation.sheet import contact_sheet, largest_cell

from .picture_places import unused
from .progress import share_bar
from .report import SOME_FAILED
from .say import say
from .text import count, visible
from .words import in_words_of_options

_PREVIEWS = 10  # of each picture

Tell = Callable[[str, float], None]


def make_pictures(
    adapter: DPAdapter, arguments: Mapping[str, Any], places: Sequence[Path], preview: Path | None
) -> None:
    """Generate a picture for each place, and write each as soon as it is made; what is written is told at the end."""
    seeds = make_request(adapter.manifest, **arguments).seeds
    common = {name: value for name, value in arguments.items() if name not in ("seed", "images_per_prompt")}
    told: list[str] = []
    free = {place for place in places if not place.exists()}
    try:
        with share_bar(f"generating with {adapter.manifest.name}") as tell:
            for start in range(0, len(places), adapter.batch_size):
                together = seeds[start : start + adapter.batch_size]
                pictures = adapter.generate(
                    **common,
                    seed=together,
                    images_per_prompt=len(together),
                    on_step=_Watcher(tell, start, len(together), len(places), preview),
                )
                for picture, place in zip(pictures, places[start:], strict=False):  # the last places are not their turn
                    if place in free and place.exists():  # another run was faster; its picture is not ours to replace
                        place = unused(str(place))
                    told.append(f"{visible(str(save(picture, place)))}: seed {read_record(picture)['seed']}")
    finally:  # not before: the bar draws over standard output
        for line in told:
            click.echo(line)


@dataclass(frozen=True)
class _Watcher:
    """Tells how far all pictures are, ``before`` of them being done and the next ``together`` being made, and rewrites
    the preview now and then."""

    tell: Tell
    before: int
    together: int
    pictures: int
    preview: Path | None

    def __call__(self, step: Step) -> None:
        first, together = self.before + 1, self.together
        which = f"picture {first}" if together == 1 else f"pictures {first} to {first + together - 1}"
        share = (self.before + together * (step.index + 1) / step.steps) / self.pictures
        self.tell(f"{which} of {self.pictures}, step {step.index + 1} of {step.steps}", share)
        if self.preview is not None and (step.index + 1) % max(step.steps // _PREVIEWS, 1) == 0:
            _save_stamped(step.preview()[0], "preview", self.preview)


def cells_of(output: Path, rows: int, columns: int) -> list[Path]:
    """Where the single pictures of a sheet go: into a folder beside it, by row and column."""
    wide = len(str(rows)), len(str(columns))
    numbers = [(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]
    return [output.with_suffix("") / f"{row:0{wide[0]}}-{column:0{wide[1]}}.png" for row, column in numbers]


def make_sheet(
    adapter: DPAdapter,
    rows: Sequence[Setting],
    columns: Sequence[Setting],
    arguments: Mapping[str, Any],
    output: Path,
) -> None:
    """Generate a picture for each place of the sheet, and write each as soon as it is made, then the sheet."""
    title, labels = arguments.get("prompt", ""), [column.label for column in columns]
    cell = largest_cell(len(rows), labels, title)
    cells, folder = cells_of(output, len(rows), len(columns)), output.with_suffix("")
    kept = 0

    def keep(row: int, column: int, picture: Image.Image) -> None:
        nonlocal kept
        folder.mkdir(exist_ok=True)
        save(picture, cells[row * len(columns) + column])
        kept += 1

    try:
        with share_bar(f"comparing with {adapter.manifest.name}") as tell:

            def on_step(picture: int, pictures: int, step: Step) -> None:
                tell(f"picture {picture + 1} of {pictures}", (picture + (step.index + 1) / step.steps) / pictures)

            grid = generate_grid(adapter, rows, columns, on_step=on_step, on_cell=keep, **arguments)
    except (DeclipError, KeyboardInterrupt):
        if kept:
            say(f"no sheet, but {count(kept, 'picture')} of {len(cells)} in {folder}")
        raise
    sheet = contact_sheet(grid, [row.label for row in rows], labels, title=title, cell=cell)
    _save_stamped(sheet, "sheet", output)
    click.echo(f"{visible(str(output))}: {len(rows)} x {len(columns)} pictures, each in {visible(str(folder))}")


def make_jobs(adapter: DPAdapter, file: Path, defaults: Mapping[str, Any], folder: Path) -> None:
    """Run a file of jobs into a folder. Raises Exit where some of them failed."""
    jobs = _read(file, adapter, defaults)
    total = sum(len(job.files) for job in jobs)
    passed = made = there = failed = 0  # pictures; of passed jobs, and of them made now, and before; jobs
    within, furthest = 0, 0.0  # pictures of the job that runs; the share that was told
    with share_bar(f"{count(len(jobs), 'job')} with {adapter.manifest.name}") as tell:

        def on_step(job: Job, step: Step) -> None:
            nonlocal within, furthest
            done = len(step.pictures) * (step.index + 1) / step.steps
            furthest = max(furthest, (passed + within + done) / total)  # the last pictures of a call may be fewer
            tell(f"line {job.line}, {job.name}", furthest)
            if step.index + 1 == step.steps:
                within += len(step.pictures)

        for outcome in run_jobs(jobs, adapter, folder, on_step):
            passed, within = passed + len(outcome.job.files), 0
            made, there = made + outcome.made, there + outcome.there
            if outcome.error is not None:
                failed += 1
                say(f"line {outcome.job.line} ({outcome.job.name}): {outcome.error}")
    parts = [f"{count(made, 'picture')} made"]
    parts += [f"{there:,} there already"] if there else []
    parts += [f"{total - made - there:,} missing because {count(failed, 'job')} failed"] if failed else []
    click.echo(f"{visible(str(folder))}: {', '.join(parts)}")
    if failed:
        raise click.exceptions.Exit(SOME_FAILED)


def _read(file: Path, adapter: DPAdapter, defaults: Mapping[str, Any]) -> list[Job]:
    """The jobs; bad lines are said one by one, and then how many they are."""
    try:
        return read_jobs(file, adapter.manifest, adapter.identity, defaults)
    except UsageError as error:
        first, *lines = str(error).split("\n")
        if not lines:
            raise
        for line in lines:
            say(in_words_of_options(line))
        raise UsageError(f"{first.removesuffix(':')}.") from error


def _save_stamped(picture: Image.Image, what: str, place: Path) -> None:
    """Write what is no generated picture, but ours to replace the next time."""
    stamp(picture, {"format": FORMAT, what: True})
    save(picture, place)
