"""``declip export``: an engine from an open_clip tower."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from declip_runtime.errors import ExportError, UsageError

from .making import tell_engine, told_stages
from .output import require_place
from .text import visible

if TYPE_CHECKING:
    from declip_training.model.checkpoint import ProjectorCheckpoint

_CALIBRATING = 8  # photos at least that calibrate INT8 or FP8
_JUDGING = 16  # photos that the engine is compared on
_SHOWN = 3  # values kept in FP32 that are named
_EXTRA = "Making engines needs torch and open_clip. Run: pip install 'declip-sdk[export]'"


@click.command("export")
@click.option("--tower", required=True, metavar="NAME", help="open_clip model, as ViT-B-32, or a model .json file.")
@click.option("--pretrained", required=True, metavar="TAG|FILE", help="open_clip tag, a checkpoint file, or random.")
@click.option("--projector", type=click.Path(path_type=Path), help="Trained projectors; without: zero-shot CLIP.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Scores and their words; TOML.")
@click.option(
    "--weights",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="How they are stored.",
)
@click.option(
    "--photos", type=click.Path(path_type=Path), metavar="FOLDER", help="Compare on photos, not made-up ones."
)
@click.option("--int8", type=click.Path(path_type=Path), metavar="FOLDER", help="Add INT8, calibrated with photos.")
@click.option("--fp8", type=click.Path(path_type=Path), metavar="FOLDER", help="Add FP8 for GPUs, calibrated likewise.")
@click.option("--no-fp16", is_flag=True, help="Leave out what GPUs run.")
@click.option("--semantic", is_flag=True, help="Let its graphs give the semantic embedding too, for other software.")
@click.option("--name", help="Name of the engine; default is the output's.")
@click.option("--no-parity", is_flag=True, help="Skip comparing the engine with torch.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The engine file to write.")
def command(
    tower: str,
    pretrained: str,
    projector: Path | None,
    prompts: Path | None,
    weights: str,
    photos: Path | None,
    int8: Path | None,
    fp8: Path | None,
    no_fp16: bool,
    semantic: bool,
    name: str | None,
    no_parity: bool,
    output: Path,
) -> None:
    """Make an engine: image tower, projector and prompts in one file.

    Without --prompts the projectors' own are used, else quality, aesthetic and ten attributes, none of them
    validated. The engine is compared with torch on this machine before it is written, best on --photos like those to
    be scored (16 are enough); INT8 and FP8 graphs on photos that did not calibrate them: without --photos every fifth
    of FOLDER, which needs 9 photos at least, better 100. What a GPU would make of FP16, INT8 and FP8 is emulated;
    values that these photos show to be too large or too small for FP16 stay FP32, and are named.

    \b
    declip export --tower ViT-B-32 --pretrained openai --photos photos/ -o clip.engine
    declip export --tower ViT-L-14 --pretrained laion2b_s32b_b82k \\
        --projector declip.safetensors --int8 photos/ -o declip.engine
    """
    folder = _calibrating(int8, fp8, no_fp16)
    _require_other_photos(photos, folder, no_parity)
    read = [tower, pretrained, *(str(path) for path in (projector, prompts) if path is not None)]
    require_place(output, read)  # it takes minutes until something is written there
    logging.disable(logging.ERROR)  # open_clip and its downloader log what our own messages say once
    with told_stages() as stage:
        stage("starting torch")
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ExportError(_EXTRA) from error
        from declip_export.engine import export_engine
        from declip_export.photos import hold_out, load_photos, sample_images
        from declip_training.model.checkpoint import load_projectors, tower_sha256
        from declip_training.model.declip import DeCLIP
        from declip_training.model.tower import load_clip

        checkpoint = None if projector is None else load_projectors(projector)
        chosen = _prompts(prompts, checkpoint)
        stage(f"loading {tower} ({pretrained})")
        clip, tokenizer, preprocess = load_clip(tower, pretrained)
        if checkpoint is not None:
            checkpoint.require_tower(clip.visual, tower)  # type: ignore[arg-type]
        chosen.require_learned_on(partial(tower_sha256, clip), "" if checkpoint is None else checkpoint.sha256)
        heads = () if checkpoint is None else (checkpoint.perceptual, checkpoint.semantic)
        stage("embedding prompts")
        declip = DeCLIP.from_clip(clip, tokenizer, chosen, *heads).eval()
        del clip  # the text tower has done its work
        calibrating, judges = None, sample_images(preprocess.size, 6)
        if folder is not None:
            stage(f"reading photos below {visible(str(folder))}")
            splits = not no_parity and photos is None
            calibrating = load_photos(folder, preprocess, minimum=_CALIBRATING + splits)
            if splits:
                calibrating, judges = hold_out(calibrating)
        if photos is not None:
            stage(f"reading photos below {visible(str(photos))}")
            judges = load_photos(photos, preprocess, _JUDGING)
        engine = export_engine(
            declip,
            preprocess,
            chosen.specs(),
            output,
            weights_dtype="float32" if weights == "float32" else "float16",
            fp16=not no_fp16,
            int8_images=None if int8 is None else calibrating,
            fp8_images=None if fp8 is None else calibrating,
            parity_images=None if no_parity else judges,
            semantic=semantic,
            name=name,
            provenance=_provenance(tower, pretrained, checkpoint, chosen),
            progress=stage,
        )
    for row in engine.manifest.provenance.get("parity", ()):
        click.echo(
            f"  {row['subject']}: scores within {row['max_score_difference']:.1e} of {row['reference']}, "
            f"cosine at least {row['min_cosine']:.6f}",
            err=True,
        )
    for graph, audit in engine.manifest.provenance["range_audit"].items():
        if kept := audit["kept_fp32"]:
            named = ", ".join(f"{v['tensor']} ({v['reason']}, up to {v['magnitude']:.3g})" for v in kept[:_SHOWN])
            more = f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
            click.echo(f"  {graph} graph: FP16 cannot hold these, they stay FP32: {named}{more}", err=True)
    tell_engine(engine)


def _calibrating(int8: Path | None, fp8: Path | None, no_fp16: bool) -> Path | None:
    """The folder with the photos that calibrate, if any; UsageError for options that do not go together."""
    if int8 is not None and fp8 is not None and int8 != fp8:
        raise UsageError("--int8 and --fp8 are calibrated with the same photos. Name one folder for both.")
    if fp8 is not None and no_fp16:
        raise UsageError("--fp8 needs FP16 around it. Leave out --no-fp16, or --fp8.")
    return fp8 if int8 is None else int8


def _require_other_photos(photos: Path | None, calibrating: Path | None, no_parity: bool) -> None:
    """Raise UsageError where ``photos`` would be of no use."""
    if photos is not None and photos == calibrating:
        raise UsageError("what calibrates cannot judge: name another folder as --photos, or leave it out.")
    if photos is not None and no_parity:
        raise UsageError("--no-parity leaves out what --photos are for. Leave out one of them.")


def _prompts(path: Path | None, checkpoint: ProjectorCheckpoint | None) -> Any:
    from declip_training.model.prompts import PromptSet

    if path is not None:
        return PromptSet.read(path)
    if checkpoint is not None and checkpoint.prompts is not None:
        return checkpoint.prompts
    return PromptSet.default()


def _provenance(tower: str, pretrained: str, checkpoint: ProjectorCheckpoint | None, prompts: Any) -> dict[str, Any]:
    named = Path(pretrained).name if Path(pretrained).is_file() else pretrained
    return {
        "tower": Path(tower).stem if tower.endswith(".json") else tower,
        "pretrained": named,
        "projector_sha256": None if checkpoint is None else checkpoint.sha256,
        "prompts_sha256": prompts.sha256(),
    }
