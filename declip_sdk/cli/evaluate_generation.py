"""``declip evaluate-generation``: DP-Adapter and the plain IP-Adapter by the same conditions, measured by models."""

from __future__ import annotations

import logging
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from declip_runtime.cpu import available_cpus
from declip_runtime.engine_file import bundled_engine
from declip_runtime.errors import TrainingError, UsageError
from declip_runtime.options import Precision

from .options import backend_options, engine_argument, numbers
from .output import standard_output
from .report import SOME_FAILED
from .say import say
from .screen import draw, printable, separator
from .stages import stage_progress
from .text import count, visible

if TYPE_CHECKING:
    from declip_training.evaluation.generation.report import Results

_EXTRA = (
    "Evaluating what is generated needs torch, open_clip and diffusers. Run: pip install 'declip-sdk[train,generate]'"
)
_PATH = click.Path(path_type=Path)
_INTERVAL_WIDTH = 156  # cells that a terminal needs for the intervals beside the numbers
_NAMED = 5  # failed pictures on standard error
_PLACE = 2  # of a line's cells, before the method: control, strength


@click.command("evaluate-generation")
@engine_argument(required=True)
@click.argument("conditions", type=_PATH)
@click.option(
    "--checkpoint", type=_PATH, required=True, metavar="FILE", help="Projectors that judge; another DeCLIP's, best."
)
@click.option("--tower", metavar="NAME", help="open_clip model that they were trained on; default: as they say.")
@click.option(
    "--pretrained", metavar="TAG|FILE", help="Its weights: open_clip tag or checkpoint file; default: likewise."
)
@click.option("-o", "--output", type=_PATH, required=True, metavar="FOLDER", help="For pictures and results.")
@click.option(
    "--scale", "scales", callback=numbers(float), default="0.6", show_default=True, metavar="X,...",
    help="Strengths of the images.",
)  # fmt: skip
@click.option(
    "--seeds", callback=numbers(int), default="0", show_default=True, metavar="N,...", help="One picture each."
)
@click.option("--steps", type=click.IntRange(1), help="Of denoising; this and the next four default to the engine's.")
@click.option("--guidance", type=float, help="How strictly text and images are followed.")
@click.option("--width", type=click.IntRange(1), help="In pixels.")
@click.option("--height", type=click.IntRange(1), help="In pixels.")
@click.option("--scheduler", metavar="NAME", help="As ddim, euler, dpm++-karras, unipc.")
@click.option("--negative", "negative_prompt", metavar="TEXT", help="What all pictures are to keep away from.")
@click.option("--scorer", metavar="ENGINE", help="Engine that rates overall quality; default: the bundled one.")
@click.option("--score", metavar="NAME", help="Its score; default quality, else the first where higher is better.")
@click.option("--scorer-backend", default="auto", show_default=True, metavar="NAME", help="What runs it.")
@click.option("--judge-device", default="auto", show_default=True, metavar="NAME", help="As torch names it.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0 is none.")
@backend_options
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Does the control work? Generate by the same conditions and seeds with DP-Adapter and IP-Adapter, and measure.

    CONDITIONS is a file, .jsonl or .csv, with a condition a line: perceptual_image and semantic_text, or semantic_image
    and perceptual_text, or both images; and a name, if wanted. Paths are relative to the file. ENGINE makes a picture
    of each by both methods for every strength and seed.

    Measured are consistency with the semantic and the perceptual condition (SC, PC; their mean is CC) in the spaces of
    the DeCLIP given by --checkpoint, overall quality (OF) by a scorer engine, and what was copied of the image that
    ought not to be (leak). This is an automatic stand-in for the user study of the DeCLIP paper: the numbers are not
    comparable with the paper's.

    FOLDER gets pictures/, results.md, results.csv, pictures.jsonl and contact sheets. The same command goes on where it
    was stopped; pictures that another engine or setting made are made again. docs/generation_evaluation.md says what
    the numbers can tell and what they cannot.

    \b
    declip evaluate-generation dp.engine conditions.jsonl --checkpoint judge.safetensors \\
        --scale 0.4,0.7,1 --seeds 0,1 -o results

    Exit codes: 0 all done, 1 some pictures failed, 2 wrong use, 130 interrupted, 143 terminated.
    """
    results = _evaluate(options)
    draw(standard_output(), lambda console: page(results, console))
    for picture in results.failed[:_NAMED]:
        say(f"{picture.planned.file}: {picture.error}")
    if failed := len(results.failed):
        say(f"{failed:,} of {count(len(results.pictures), 'picture')} failed; all are named in pictures.jsonl")
    context.exit(SOME_FAILED if failed else 0)


def _evaluate(options: dict[str, Any]) -> Results:
    logging.disable(logging.ERROR)  # open_clip and its downloader log what our own messages say once
    try:
        import diffusers  # noqa: F401
        import scipy  # noqa: F401
        import torch
    except ImportError as error:
        raise TrainingError(_EXTRA) from error
    from declip_runtime.generation.adapter import DPAdapter
    from declip_training.evaluation.generation.judge import Judge
    from declip_training.evaluation.generation.quality import QualityScorer
    from declip_training.evaluation.generation.run import PICTURES, Evaluation, evaluate_generation
    from declip_training.train.world import join

    folder: Path = options["output"]
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Name a folder with -o.")
    threads = options["threads"] or available_cpus()
    torch.set_num_threads(threads)
    names = ("steps", "guidance", "width", "height", "scheduler", "negative_prompt")
    settings = {name: options[name] for name in names if options[name] is not None}
    scorer = QualityScorer.of(options["scorer"] or bundled_engine(), options["score"], options["scorer_backend"])
    precision: Precision = options["precision"]
    with (
        DPAdapter(
            options["engine"],
            backend=options["backend"],
            device=options["device"],
            precision=precision,
            threads=options["threads"],
        ) as adapter,
        join(options["judge_device"]) as (_, device),
        stage_progress(shown=True) as progress,
    ):
        evaluation = Evaluation.read(
            options["conditions"],
            folder,
            scales=options["scales"],
            seeds=options["seeds"],
            settings=settings,
            draws=options["draws"],
        )

        def load_judge() -> Judge:
            click.echo(f"  loading the judge, {visible(str(options['checkpoint']))}", err=True)
            return Judge.load(options["checkpoint"], device, options["tower"], options["pretrained"])

        try:
            finished = evaluate_generation(evaluation, adapter, load_judge, scorer, progress)
        except KeyboardInterrupt:
            say(f"what was generated is kept in {folder / PICTURES}; the same command goes on with the rest")
            raise
    say(f"{count(finished.made, 'picture')} generated, written to {folder}: {', '.join(finished.files)}")
    return finished.results


def page(results: Results, console: Console) -> RenderableType:
    """A block for each control and strength: both methods and their difference, one number below the other."""
    from declip_training.evaluation.generation.report import HEADINGS, table_cells
    from declip_training.evaluation.generation.study import STAND_IN

    wide = console.width >= _INTERVAL_WIDTH
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for position, heading in enumerate(HEADINGS[_PLACE:]):
        table.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    for place, block in groupby(map(table_cells, results.rows), key=lambda cells: cells[:_PLACE]):
        title = separator(console).join((place[0], f"{HEADINGS[1]} {place[1]}"))
        table.add_row()
        table.add_row(Text(printable(title, console), style="bold cyan"))
        for cells in block:
            shown = cells[_PLACE:] if wide else [cell.partition(" (")[0] for cell in cells[_PLACE:]]
            table.add_row(*(Text(printable(cell, console)) for cell in shown))
    told = [STAND_IN, *results.notes] + ([] if wide else ["Intervals are in results.md."])
    return Group(table, Text(""), *(Text(printable(note, console), style="dim italic") for note in told))
