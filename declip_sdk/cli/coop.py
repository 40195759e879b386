"""``declip coop``: words of a prompt learned from people's opinions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from declip_runtime.cpu import available_cpus
from declip_runtime.errors import TrainingError, UsageError

from .options import THREADS
from .say import say
from .stages import stage_progress
from .text import visible

if TYPE_CHECKING:
    from declip_training.opinions import Opinions
    from declip_training.train.settings import Precision

_EXTRA = "Learning prompts needs torch and open_clip. Run: pip install 'declip-sdk[train]'"
_PATH = click.Path(path_type=Path)


@click.command("coop")
@click.option("--tower", required=True, metavar="NAME", help="open_clip model, as ViT-B-32, or a model .json file.")
@click.option("--pretrained", required=True, metavar="TAG|FILE", help="open_clip tag, a checkpoint file, or random.")
@click.option("--projector", type=_PATH, metavar="FILE", help="Trained projectors; without: zero-shot CLIP.")
@click.option("--data", metavar="NAME=PATH", help="A data set that declip evaluate knows, without its test split.")
@click.option("--ratings", type=_PATH, metavar="FILE", help="Or a table (.csv, .jsonl, .parquet): image, score.")
@click.option("-o", "--out", "folder", type=_PATH, required=True, help="The run's folder.")
@click.option("--prompts", type=_PATH, metavar="FILE", help="Scores and their words; default: our own quality.")
@click.option("--score", default="quality", show_default=True, help="The score whose prompts get the context.")
@click.option("--tokens", type=int, default=16, show_default=True, help="Length of the context.")
@click.option("--position", type=click.Choice(["before", "around", "after"]), default="before", show_default=True)
@click.option(
    "--context",
    type=click.Choice(["shared", "side", "prompt"]),
    default="side",
    show_default=True,
    help="One for all prompts, for each side of the pairs, or for each prompt.",
)
@click.option("--words", default="", help="Start from these words, a vector a token, instead of --tokens random ones.")
@click.option("--steps", type=int, default=1000, show_default=True)
@click.option("--batch", type=int, default=256, show_default=True, help="Photos a step.")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Learning rate of AdamW, cosine.")
@click.option("--plcc", type=float, default=0.0, show_default=True, help="Weight of 1 - PLCC beside the MSE.")
@click.option("--scale", type=float, help="Logit scale; default: the prompts file's, else the tower's.")
@click.option("--validation", type=float, default=0.1, show_default=True, help="Share of photos to choose the step by.")
@click.option("--check-every", type=int, default=50, show_default=True, help="Steps.")
@click.option("--seed", type=int, default=13, show_default=True)
@click.option("--skip-unreadable", is_flag=True, help="Leave photos out that cannot be read, instead of stopping.")
@click.option("--allow-missing", is_flag=True, help="Learn from the images of --data that are there; count the others.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda or as torch names it.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help=THREADS)
def command(**options: Any) -> None:
    """Learn a context for a score's prompts from photos with opinion scores (CoOp); all else stays frozen.

    OUT/prompts.toml is what `declip export --prompts` takes, with the same tower and projector. The photos go
    through the tower once; another run in the same folder finds their features there, also those of a run that was
    stopped. Of --data everything is used that is not the official test split, so that declip evaluate can judge the
    result on that.

    \b
    declip coop --tower ViT-B-32 --pretrained openai --projector best.safetensors --data koniq=KonIQ-10k -o coop
    declip export --tower ViT-B-32 --pretrained openai --projector best.safetensors --prompts coop/prompts.toml \\
        -o declip.engine
    """
    if (options["data"] is None) == (options["ratings"] is None):
        raise UsageError("give the rated photos either as --data NAME=PATH or as --ratings FILE.")
    logging.disable(logging.ERROR)  # open_clip and its downloader log what our own messages say once
    try:
        import torch
    except ImportError as error:
        raise TrainingError(_EXTRA) from error
    from declip_training.arithmetic import computes_in_bf16
    from declip_training.coop import CoopConfig
    from declip_training.coop_run import PROMPTS, CoopJob, run_coop
    from declip_training.model.checkpoint import load_projectors
    from declip_training.model.prompts import PromptSet
    from declip_training.train.sole import sole
    from declip_training.train.towers import Towers
    from declip_training.train.world import join

    threads = options["threads"] or available_cpus()
    torch.set_num_threads(threads)
    names = ("tokens", "position", "context", "words", "steps", "lr", "check_every", "seed")
    config = CoopConfig(**{name: options[name] for name in names})
    checkpoint = None if options["projector"] is None else load_projectors(options["projector"])
    job = CoopJob(
        options["folder"],
        _prompts(PromptSet.default(), options["score"]) if options["prompts"] is None
        else PromptSet.read(options["prompts"]),
        config=config, threads=threads, projector_sha256="" if checkpoint is None else checkpoint.sha256,
        **{name: options[name] for name in ("score", "batch", "plcc", "validation", "scale", "skip_unreadable")},
    )  # fmt: skip
    opinions = _opinions(options["data"], options["ratings"], options["allow_missing"])
    if opinions.missing:
        total = opinions.missing + len(opinions.paths)
        say(f"{opinions.title}: {opinions.missing:,} of {total:,} images are not on disk and are left out")
    click.echo(f"  loading {visible(options['tower'])} ({visible(options['pretrained'])})", err=True)
    with join(options["device"]) as (world, device):
        precision: Precision = "bf16" if computes_in_bf16(device) else "fp32"
        towers = Towers.load(options["tower"], options["pretrained"], device, precision)
        perceptual: torch.nn.Module = torch.nn.Identity()
        if checkpoint is not None:
            checkpoint.require_tower(towers.visual, towers.tower)
            perceptual = checkpoint.perceptual
        job.require_room(towers)
        with sole(job.folder, world, say), stage_progress(shown=True) as progress:
            report = run_coop(job, towers, perceptual, opinions, progress, say)
    click.echo(visible(str(job.folder / PROMPTS)))
    click.echo(f"  {report['photos'] - report['held out']:,} photos of {visible(opinions.title)}", err=True)
    for what in ("words alone", "with context"):
        found = report[what]
        held = f"on the {report['held out']:,} that chose the step"
        click.echo(f"  {what}: SRCC {found['srcc']:.4f}, PLCC {found['plcc']:.4f} {held}", err=True)


def _prompts(default: Any, score: str) -> Any:
    """Of our own prompts the one score only: a context for it says nothing of the others."""
    from dataclasses import replace

    chosen = tuple(s for s in default.scores if s.spec.name == score)
    return replace(default, scores=chosen) if chosen else default


def _opinions(data: str | None, ratings: Path | None, allow_missing: bool) -> Opinions:
    from declip_training.opinions import read_data_set, read_table

    if ratings is not None:
        if allow_missing:
            raise UsageError("--allow-missing is for --data. With --ratings leave photos out by --skip-unreadable.")
        return read_table(ratings)
    name, equals, path = str(data).partition("=")
    if not (equals and name and path):
        raise UsageError(f"--data {data}: give a data set and its folder, as in --data koniq=KonIQ-10k.")
    return read_data_set(name, Path(path), allow_missing=allow_missing)
