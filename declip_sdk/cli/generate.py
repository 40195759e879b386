"""``declip generate``: pictures that take their look from one image and their content from a text, or the other way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from declip_runtime.errors import UsageError
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.grid import Setting, generate_grid, modes, scales, seeds
from declip_runtime.generation.job_runner import run_jobs
from declip_runtime.generation.jobs import Job, read_jobs
from declip_runtime.generation.progress import Step
from declip_runtime.generation.record import read_record, repeat, save
from declip_runtime.generation.schedulers import NAMES
from declip_runtime.generation.sheet import contact_sheet
from declip_runtime.options import Precision

from .options import PRECISIONS, engine_argument
from .progress import loading, share_bar
from .say import say
from .text import visible

_AXES = ("modes", "scales", "seeds")
_CONDITIONS = ("perceptual", "semantic", "image")


def _scale(_context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """A number, or JSON as diffusers' set_ip_adapter_scale takes it."""
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is neither a number nor JSON. Give 0.7, or by block "
            """'{"up": {"block_0": [0, 1, 0]}}'."""
        ) from error


def _numbers(kind: type[float] | type[int]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def parsed(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[Any] | None:
        if value is None:
            return None
        try:
            return [kind(part) for part in value.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is no list of numbers. Write them with commas between.") from error

    return parsed


def _condition(name: str, gives: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{name}", multiple=True, metavar="IMAGE", help=f"Gives {gives}; repeatable, they act together."
    )


@click.command("generate")
@engine_argument(required=True)
@click.option("-p", "--prompt", metavar="TEXT", help="What to show.")
@click.option("--negative", "negative_prompt", metavar="TEXT", help="What to keep away from.")
@_condition("perceptual", "its look")
@_condition("semantic", "its content")
@_condition("image", "both, the plain IP-Adapter")
@click.option("--perceptual-scale", callback=_scale, metavar="S", help="How strongly: a number, or JSON by block.")
@click.option("--semantic-scale", callback=_scale, metavar="S", help="Likewise.")
@click.option("--image-scale", callback=_scale, metavar="S", help="Likewise.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Denoising steps; default: the engine's.")
@click.option("--guidance", type=float, metavar="G", help="How strictly text and images are followed; 1 is faster.")
@click.option("--width", type=int, metavar="PIXELS")
@click.option("--height", type=int, metavar="PIXELS")
@click.option("--seed", type=int, metavar="N", help="Of the first picture; default: drawn, and told.")
@click.option("-n", "--count", type=click.IntRange(1), metavar="N", help="Pictures to make; default 1.")
@click.option("--scheduler", metavar="NAME", help=f"One of {', '.join(NAMES)}.")
@click.option("--repeat", "repeated", type=click.Path(path_type=Path), metavar="PNG", help="Make that picture again.")
@click.option(
    "--jobs", type=click.Path(path_type=Path), metavar="FILE", help="JSON lines with these options, a job each."
)
@click.option("--sheet", metavar="ROWS,COLUMNS", help=f"Compare on one sheet: two of {', '.join(_AXES)}.")
@click.option("--scales", "sheet_scales", callback=_numbers(float), default="0.3,0.6,1.0", show_default=True)
@click.option("--seeds", "sheet_seeds", callback=_numbers(int), default="0,1,2", show_default=True)
@click.option("--preview", type=click.Path(path_type=Path), metavar="PNG", help="Rewritten while it runs.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See: declip info")
@click.option("--device", metavar="NAME", help="Device, as the backend names it.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads to compute with; default: all.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A .png file (numbered where there are several), or with --jobs a folder; default: generated.png.",
)
def command(
    engine: str,
    repeated: Path | None,
    jobs: Path | None,
    sheet: str | None,
    sheet_scales: list[float],
    sheet_seeds: list[int],
    preview: Path | None,
    backend: str,
    device: str | None,
    precision: Precision,
    threads: int | None,
    count: int | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Generate pictures with ENGINE, steered by texts and images.

    The look of one image with the content of a text, the content of an image with the look that a text describes, or
    both from images: perceptual and semantic embeddings of DeCLIP steer Stable Diffusion through an IP-Adapter. --image
    is the plain IP-Adapter, to compare with. Every PNG holds what is needed to make it again (--repeat).

    \b
    declip generate dp.engine -p "a lighthouse" --perceptual dusk.jpg -o out.png
    declip generate dp.engine -p "dark, grainy, muted colours" --semantic dog.jpg
    declip generate dp.engine --perceptual dusk.jpg --semantic dog.jpg --sheet modes,scales
    declip generate dp.engine --jobs jobs.jsonl -o pictures/

    A file of jobs has one JSON object a line, its keys the options' names with _ for - (prompt, negative_prompt,
    perceptual, ..., seed, images_per_prompt, and name for the file); started again, it goes on where it was stopped.

    Exit codes: 0 all made, 1 some jobs failed, 2 wrong use or an engine or backend that fails, 130 interrupted.
    """
    stated = {name: list(v) if name in _CONDITIONS else v for name, v in options.items() if v not in (None, ())}
    _refuse_together({"--repeat": repeated, "--jobs": jobs, "--sheet": sheet})
    if count is not None:
        _refuse_together({"--count": count, "--sheet": sheet})
        stated["images_per_prompt"] = count
    axes = None if sheet is None else _axes(sheet, stated, sheet_scales, sheet_seeds)
    with loading():
        adapter = DPAdapter(engine, backend=backend, device=device, precision=precision, threads=threads)
    with adapter:
        if adapter.backend == "fake":
            say("these pictures are made up by the fake backend, for testing pipelines only")
        if jobs is not None:
            _run_jobs(adapter, jobs, stated, output or Path("generated"))
        elif axes is not None:
            _make_sheet(adapter, *axes, stated, _png(output or Path("sheet.png")))
        else:
            if repeated is not None:
                stated = {**_again(adapter, repeated), **stated}
            _make_pictures(adapter, stated, _png(output or Path("generated.png")), preview)


def _make_pictures(adapter: DPAdapter, arguments: dict[str, Any], output: Path, preview: Path | None) -> None:
    with share_bar(f"generating with {adapter.manifest.name}") as progress:

        def on_step(step: Step) -> None:
            progress(f"step {step.index + 1} of {step.steps}", (step.index + 1) / step.steps)
            if preview is not None and step.index % 5 == 4:
                save(step.preview()[0], preview)

        pictures = adapter.generate(**arguments, on_step=on_step)
    for number, picture in enumerate(pictures, 1):
        name = output if len(pictures) == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")
        click.echo(f"{visible(str(save(picture, name)))}: seed {read_record(picture)['seed']}")


def _make_sheet(
    adapter: DPAdapter, rows: Sequence[Setting], columns: Sequence[Setting], arguments: dict[str, Any], output: Path
) -> None:
    with share_bar(f"comparing with {adapter.manifest.name}") as progress:

        def on_step(picture: int, pictures: int, step: Step) -> None:
            share = (picture + (step.index + 1) / step.steps) / pictures
            progress(f"picture {picture + 1} of {pictures}", share)

        grid = generate_grid(adapter, rows, columns, on_step=on_step, **arguments)
    title = arguments.get("prompt", "")
    save(contact_sheet(grid, [r.label for r in rows], [c.label for c in columns], title=title), output)
    folder = output.with_suffix("")
    folder.mkdir(exist_ok=True)
    for r, line in enumerate(grid, 1):
        for c, picture in enumerate(line, 1):
            save(picture, folder / f"{r}-{c}.png")
    click.echo(f"{visible(str(output))}: {len(rows)} x {len(columns)} pictures, each in {visible(str(folder))}")


def _run_jobs(adapter: DPAdapter, file: Path, defaults: dict[str, Any], folder: Path) -> None:
    jobs = read_jobs(file, adapter.manifest, adapter.identity, defaults)
    places = {id(job): number for number, job in enumerate(jobs)}
    failed = made = 0
    with share_bar(f"{len(jobs)} jobs with {adapter.manifest.name}") as progress:

        def on_step(job: Job, step: Step) -> None:
            place = places[id(job)]
            share = (place + (step.index + 1) / step.steps) / len(jobs)
            progress(f"job {place + 1} of {len(jobs)}", share)

        for outcome in run_jobs(jobs, adapter, folder, on_step):
            made += outcome.made
            if outcome.error is not None:
                failed += 1
                say(f"line {outcome.job.line} ({outcome.job.name}): {outcome.error}")
    kept = sum(len(job.files) for job in jobs) - made
    click.echo(f"{visible(str(folder))}: {made} pictures made, {kept} were there or failed, {failed} jobs failed")
    if failed:
        raise click.exceptions.Exit(1)


def _again(adapter: DPAdapter, picture: Path) -> dict[str, Any]:
    """The arguments that made a picture; says so where something else made it, which then may come out differently."""
    record = read_record(picture)
    engine = record.get("engine") or {}
    now = {"engine": adapter.engine.id, "backend": adapter.backend, "precision": adapter.precision}
    then = {"engine": engine.get("id"), "backend": record.get("backend"), "precision": record.get("precision")}
    other = [f"{name} {str(then[name])[:8]}, here {str(now[name])[:8]}" for name in now if now[name] != then[name]]
    if other:
        warnings.warn(
            f"{picture} was made with another {'; '.join(other)}: it will not come out quite the same.", stacklevel=2
        )
    return repeat(record, folder=picture.parent)


def _axes(
    text: str, stated: dict[str, Any], strengths: list[float], numbers: list[int]
) -> tuple[list[Setting], list[Setting]]:
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or len(set(names)) != 2 or not set(names) <= set(_AXES):
        raise UsageError(f"--sheet {text!r} cannot work. Name rows and columns, two of {', '.join(_AXES)}.")
    made = {
        "modes": lambda: modes(**{kind: stated.pop(kind) for kind in _CONDITIONS if kind in stated}),
        "scales": lambda: scales(strengths),
        "seeds": lambda: seeds(numbers),
    }
    for name, options in (("scales", [f"{kind}_scale" for kind in _CONDITIONS]), ("seeds", ["seed"])):
        if name in names and (both := [o for o in options if o in stated]):
            raise UsageError(f"--sheet {text} sets what --{both[0].replace('_', '-')} does. Leave that out.")
    first, second = (made[name]() for name in names)
    return first, second


def _png(output: Path) -> Path:
    """The place for a picture, checked before minutes of work. Raises UsageError."""
    if output.suffix.lower() != ".png":
        raise UsageError(f"{output} is no .png file, which alone keeps how a picture was made. Name one.")
    if not output.parent.is_dir():
        raise UsageError(f"the folder {output.parent} does not exist. Create it or choose another output.")
    return output


def _refuse_together(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} do not go together. Use one of them.")
