"""``declip train``: projectors on any open_clip tower."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from declip_runtime.cpu import available_cpus
from declip_runtime.errors import DeclipError, TrainingError

from .heif import register_heif
from .invoke import WRONG_USE
from .say import say
from .stages import stage_progress
from .text import visible

if TYPE_CHECKING:
    from declip_training.train.run import Job
    from declip_training.train.world import World

_EXTRA = "Training needs torch and open_clip. Run: pip install 'declip-sdk[train]'"
_FOLDER = click.Path(path_type=Path)


@click.command("train")
@click.argument("records", type=_FOLDER)
@click.option("--tower", required=True, metavar="NAME", help="open_clip model, as ViT-B-32, or a model .json file.")
@click.option("--pretrained", required=True, metavar="TAG|FILE", help="open_clip tag, a checkpoint file, or random.")
@click.option("-o", "--out", "folder", type=_FOLDER, required=True, help="The run's folder.")
@click.option("--epochs", type=int, default=200, show_default=True)
@click.option("--batch", type=int, default=1024, show_default=True, help="Records a step, over all processes.")
@click.option("--lr", type=float, default=1e-5, show_default=True, help="Learning rate of AdamW.")
@click.option("--weight-decay", type=float, default=5e-2, show_default=True)
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True)
@click.option("--warmup", type=int, default=0, show_default=True, help="Steps in which the rate rises.")
@click.option("--clip-norm", type=float, default=0.0, show_default=True, help="Largest gradient norm; 0: any.")
@click.option("--loss", type=click.Choice(["image-to-text", "symmetric"]), default="image-to-text", show_default=True)
@click.option("--tau", type=float, default=0.07, show_default=True, help="Temperature of the loss.")
@click.option("--learn-tau", is_flag=True, help="Learn the temperature, from 0.01 to 1, beginning at --tau.")
@click.option("--latent", type=int, default=1024, show_default=True, help="Width of the projectors.")
@click.option("--activation", type=click.Choice(["between", "before"]), default="between", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--validation", type=float, default=0.02, show_default=True, help="Share of records held out; 0: none.")
@click.option("--evaluate-every", type=int, default=1, show_default=True, help="Epochs.")
@click.option("--crops", type=int, default=4, show_default=True, help="Random crops of an image in the feature bank.")
@click.option("--crop-side", type=float, default=0.7, show_default=True, help="Least side, of the shorter side.")
@click.option("--live", is_flag=True, help="No feature bank: the tower sees fresh crops in every step.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--bank", type=_FOLDER, help="Folder of the feature bank, to share it between runs; default: OUT/bank.")
@click.option("--init", type=_FOLDER, metavar="FILE", help="Begin with these projectors instead of the identity.")
@click.option("--skip-unreadable", is_flag=True, help="Leave images out that cannot be read, instead of stopping.")
@click.option("--report", type=_FOLDER, metavar="RECORDS", help="Then judge the disentanglement on these records.")
@click.option("--report-kind", "kinds", multiple=True, help="Distortions of the report; may be repeated; default: all.")
@click.option("--tensorboard", is_flag=True, help="Write curves to OUT/tensorboard.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda or as torch names it.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPUs of a process; default: all (torchrun: 1).")
@click.option("--log-every", type=click.IntRange(1), default=50, show_default=True, help="Steps.")
@click.option(
    "--save-every", type=click.IntRange(1), default=500, show_default=True, help="Steps; what a kill may cost."
)
def command(**options: Any) -> None:
    """Train DeCLIP's two projectors on a frozen CLIP, with the paper's settings unless others are given.

    RECORDS is an I&2T table (.parquet, .jsonl, .csv) with id, image, perceptual and semantic; images lie relative to
    it. The towers run once, into a feature bank; training reads only that. OUT/best.safetensors is what `declip export
    --projector` takes. A run that was stopped goes on, to the same weights, when the same command is given again.

    \b
    declip train i2t.parquet --tower ViT-B-32 --pretrained openai -o runs/b32
    declip train i2t.parquet --tower ViT-B-32 --pretrained openai -o runs/b32 --report human.jsonl
    torchrun --nproc-per-node 4 -m declip_sdk train i2t.parquet --tower ...
    """
    logging.disable(logging.ERROR)  # open_clip and its downloader log what our own messages say once
    leads = os.environ.get("RANK", "0") == "0"  # torchrun sets it
    tell: Callable[[str], None] = _tell if leads else lambda line: None
    tell("starting torch")
    try:
        import torch
    except ImportError as error:
        raise TrainingError(_EXTRA) from error
    from declip_training.arithmetic import computes_in_bf16
    from declip_training.train.world import LostProcessError, join

    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    elif "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it
        torch.set_num_threads(available_cpus())
    register_heif()
    with join(options["device"]) as (world, device):
        if options["precision"] == "auto":
            options["precision"] = "bf16" if computes_in_bf16(device) else "fp32"
        try:
            _train(options, world, device, tell)
        except DeclipError as error:
            if world.leads or isinstance(error, LostProcessError):
                raise
            raise click.exceptions.Exit(WRONG_USE) from None  # the first process says what all of them know


def _train(options: dict[str, Any], world: World, device: Any, tell: Callable[[str], None]) -> None:
    from declip_training.i2t.records import read_records
    from declip_training.train.report import require_kinds
    from declip_training.train.run import Job, report_run, train
    from declip_training.train.settings import TrainSettings
    from declip_training.train.towers import Towers

    with world.together():
        settings = TrainSettings(**{f.name: options[f.name] for f in fields(TrainSettings)})
        require_kinds(options["kinds"])
        for table in filter(None, (options["records"], options["report"])):
            read_records(table)  # before the tower is loaded
        tell(f"loading {options['tower']} ({options['pretrained']})")
        towers = Towers.load(options["tower"], options["pretrained"], device, settings.precision)
    names = {f.name for f in fields(Job)} & options.keys()
    job = Job(
        **{**{n: options[n] for n in names}, "settings": settings, "threads": options["threads"] or available_cpus()}
    )
    warn: Callable[[str], None] = say if world.leads else lambda line: None
    with stage_progress(shown=world.leads) as progress:
        summary = train(job, towers, world, progress, warn)
    if not world.leads:
        return
    if summary.get("already"):
        say(f"{job.folder} is finished: nothing was trained. Give another folder with -o for another run.")
    click.echo(_result(job, summary))
    if options["report"] is not None:
        with stage_progress(shown=True) as progress:
            folder = report_run(
                job, towers, options["report"], kinds=options["kinds"] or None, progress=progress, say=warn
            )
        click.echo(visible(str(folder / "report.md")))


def _result(job: Job, summary: dict[str, Any]) -> str:
    best = visible(str(job.folder / "best.safetensors"))
    trained = f"{summary['steps']:,} steps on {summary['train']:,} records"
    if "best_step" not in summary:
        return f"{best} (the last of {trained}; no record was held out)"
    return f"{best} (step {summary['best_step']:,.0f} of {trained}, validation loss {summary['best_validation']:.4f})"


def _tell(line: str) -> None:
    click.echo(f"  {visible(line)}", err=True)
