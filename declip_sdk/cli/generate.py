"""``declip generate``: pictures that take their look from one image and their content from a text, or the other way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from declip_runtime.errors import ImageNotFoundError, UsageError
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.grid import Setting, modes, scales, seeds
from declip_runtime.generation.plain_numbers import shown
from declip_runtime.generation.record import Record, differences, read_record, repeat
from declip_runtime.generation.request import MOST_PICTURES
from declip_runtime.generation.schedulers import NAMES
from declip_runtime.options import Precision

from .generating import cells_of, make_jobs, make_pictures, make_sheet
from .options import PRECISIONS, engine_argument, numbers
from .picture_places import numbered, require_picture_places, unused
from .progress import loading
from .say import say

_AXES = ("modes", "scales", "seeds")
_CONDITIONS = ("perceptual", "semantic", "image")
_PATH = click.Path(path_type=Path)
_SCALES, _SEEDS = (0.3, 0.6, 1.0), (0, 1, 2)


def _scale(_context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """A number, or JSON as diffusers' set_ip_adapter_scale takes it."""
    if value is None:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{shown(value)} is neither a number nor JSON. Give 0.7, or by block "
            """'{"up": {"block_0": [0, 1, 0]}}'."""
        ) from error


def _written(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


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
@click.option("--perceptual-scale", callback=_scale, metavar="S", help="How strongly: a number (1), or JSON by block.")
@click.option("--semantic-scale", callback=_scale, metavar="S", help="Likewise.")
@click.option("--image-scale", callback=_scale, metavar="S", help="Likewise.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Denoising steps; default: the engine's.")
@click.option("--guidance", type=float, metavar="G", help="How strictly text and images are followed; 1 is faster.")
@click.option("--width", type=int, metavar="PIXELS", help="Default of both: the engine's.")
@click.option("--height", type=int, metavar="PIXELS")
@click.option("--seed", type=int, metavar="N", help="Of the first picture; default: drawn, and told.")
@click.option("-n", "--count", type=click.IntRange(1, MOST_PICTURES), metavar="N", help="Pictures to make; default 1.")
@click.option("--scheduler", metavar="NAME", help=f"One of {', '.join(NAMES)}.")
@click.option("--repeat", "repeated", type=_PATH, metavar="PNG", help="Make that picture again.")
@click.option("--jobs", type=_PATH, metavar="FILE", help="Pictures of many kinds: JSON lines, see below.")
@click.option("--sheet", metavar="ROWS,COLUMNS", help=f"Compare on one sheet: two of {', '.join(_AXES)}.")
@click.option(
    "--scales",
    "sheet_scales",
    callback=numbers(float),
    metavar="S,...",
    help=f"Of a sheet; default {_written(_SCALES)}.",
)
@click.option(
    "--seeds", "sheet_seeds", callback=numbers(int), metavar="N,...", help=f"Of a sheet; default {_written(_SEEDS)}."
)
@click.option("--preview", type=_PATH, metavar="PNG", help="Rewritten about ten times while a picture is made.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="See: declip info")
@click.option("--device", metavar="NAME", help="Device, as the backend names it.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads to compute with; default: all.")
@click.option(
    "-o", "--output", type=_PATH, metavar="PATH",
    help="A .png file, numbered where there are several pictures; of a sheet, with a folder of that name beside it; of "
    "jobs a folder. Default: generated.png or sheet.png, with a number where that is there, and the folder generated.",
)  # fmt: skip
def command(
    engine: str,
    repeated: Path | None,
    jobs: Path | None,
    sheet: str | None,
    sheet_scales: tuple[float, ...] | None,
    sheet_seeds: tuple[int, ...] | None,
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

    A file of jobs has one JSON object a line. Its keys are the options' names with _ for -, but negative_prompt for
    --negative and images_per_prompt for --count, and name for the file; options apply where a line does not say
    otherwise. Started again, it goes on where it was stopped.

    What has no record of how it was generated is never replaced, nor are the reference images.

    Exit codes: 0 all made, 1 some jobs failed, 2 wrong use or an engine or backend that fails, 130 interrupted.
    """
    stated = {name: list(v) if name in _CONDITIONS else v for name, v in options.items() if v not in (None, ())}
    _refuse_together({"--repeat": repeated, "--jobs": jobs, "--sheet": sheet})
    _refuse_together({"--count": count, "--sheet": sheet})
    for other in ({"--jobs": jobs}, {"--sheet": sheet}):
        _refuse_together({"--preview": preview, **other})
    if jobs is None and repeated is None and not {"prompt", *_CONDITIONS} & stated.keys():
        raise UsageError("nothing says what to generate. Give --prompt, or an image with --perceptual or --semantic.")
    if count is not None:
        stated["images_per_prompt"] = count
    record = None if repeated is None else read_record(repeated)
    if record is not None and repeated is not None:
        stated = _again(record, repeated.parent, stated)
    inputs = [str(path) for kind in _CONDITIONS for path in stated.get(kind, ())] + [str(p) for p in (repeated,) if p]
    for path in inputs:
        if not Path(path).exists():  # before minutes of loading
            raise ImageNotFoundError(f"{path!r} does not exist. Check the path.")
    axes = _axes(sheet, stated, sheet_scales, sheet_seeds)
    pictures: list[Path] = []
    if axes is not None:
        output = output or unused("sheet.png")
        require_picture_places([output, *_cells_to_check(output, *axes)], inputs)
    elif jobs is None:
        pictures = numbered(output or unused("generated.png", count or 1), count or 1)
        require_picture_places([*pictures, *filter(None, [preview])], inputs)
    with loading():
        adapter = DPAdapter(engine, backend=backend, device=device, precision=precision, threads=threads)
    with adapter:
        if adapter.backend == "fake":
            say("these pictures are made up by the fake backend, for testing pipelines only")
        if record is not None and (changed := differences(record, adapter.identity)):
            warnings.warn(
                f"{repeated} was made with {', '.join(changed)}: it will not come out quite the same.", stacklevel=2
            )
        if jobs is not None:
            make_jobs(adapter, jobs, stated, output or Path("generated"))
        elif axes is not None and output is not None:
            make_sheet(adapter, *axes, stated, output)
        else:
            make_pictures(adapter, stated, pictures, preview)


def _again(record: Record, folder: Path, stated: dict[str, Any]) -> dict[str, Any]:
    """The arguments that made a picture, and what is stated otherwise.

    Images of the record may be stated where they have moved, but not be others. Raises what ``repeat`` raises.
    """
    arguments = repeat(record, folder=folder, **{kind: stated.get(kind) for kind in _CONDITIONS})
    return {**arguments, **stated, **{kind: arguments[kind] for kind in _CONDITIONS if kind in arguments}}


def _axes(
    sheet: str | None, stated: dict[str, Any], strengths: tuple[float, ...] | None, numbers_: tuple[int, ...] | None
) -> tuple[list[Setting], list[Setting]] | None:
    """Rows and columns of a sheet; None where none was asked for. Takes what they set out of ``stated``."""
    names = [] if sheet is None else [name.strip() for name in sheet.split(",")]
    for name, given in (("scales", strengths), ("seeds", numbers_)):
        if given is not None and name not in names:
            raise UsageError(f"--{name} are those of a sheet with {name}. Add --sheet, as --sheet modes,{name}.")
    if sheet is None:
        return None
    if len(names) != 2 or len(set(names)) != 2 or not set(names) <= set(_AXES):
        raise UsageError(f"--sheet {sheet!r} cannot work. Name rows and columns, two of {', '.join(_AXES)}.")
    for name, options in (("scales", [f"{kind}_scale" for kind in _CONDITIONS]), ("seeds", ["seed"])):
        if name in names and (both := [option for option in options if option in stated]):
            raise UsageError(f"--sheet {sheet} sets what --{both[0].replace('_', '-')} does. Leave that out.")
    made = {
        "modes": lambda: modes(**{kind: stated.pop(kind) for kind in _CONDITIONS if kind in stated}),
        "scales": lambda: scales(strengths or _SCALES),
        "seeds": lambda: seeds(numbers_ or _SEEDS),
    }
    first, second = (made[name]() for name in names)
    return first, second


def _cells_to_check(output: Path, rows: list[Setting], columns: list[Setting]) -> list[Path]:
    """The places of a sheet's pictures where their folder is there already. Raises UsageError where it is a file."""
    folder = output.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, and the sheet's pictures need that as a folder. Choose another output.")
    return cells_of(output, len(rows), len(columns)) if folder.exists() else []


def _refuse_together(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} do not go together. Use one of them.")
