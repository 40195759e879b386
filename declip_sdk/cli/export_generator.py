"""``declip export-generator``: an engine from a Stable Diffusion, an IP-Adapter and a DeCLIP checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from declip_runtime.errors import ExportError, UsageError
from declip_runtime.plans import parse_profile
from declip_runtime.signature import Range

from .making import tell_engine, told_stages
from .output import require_place

if TYPE_CHECKING:
    from declip_export.weights import StorageDtype

_EXTRA = "Making generator engines needs torch, diffusers and transformers. Run: pip install 'declip-sdk[generate]'"


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | Range | None:
    """One size, or a range as 512,512,768."""
    if value is None:
        return None
    return int(value) if value.isdecimal() else parse_profile(value)


def _lora(value: str) -> tuple[str, float]:
    source, at, strength = value.rpartition("@")
    if not at:
        return value, 1.0
    try:
        return source, float(strength)
    except ValueError as error:
        raise UsageError(f"--lora {value!r}: {strength!r} is no strength. Write it as FILE@0.8.") from error


@click.command("export-generator")
@click.option(
    "--base", required=True, metavar="PATH|ID", help="Stable Diffusion 1.x, 2.x or XL: folder, file or hub id."
)
@click.option("--adapter", required=True, metavar="PATH|ID:FILE", help="A standard IP-Adapter for it.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="DeCLIP projectors; without: the plain IP-Adapter.")
@click.option("--tower", metavar="NAME", help="open_clip tower; default: the checkpoint's.")
@click.option("--pretrained", metavar="TAG|FILE", help="Its weights; default: the checkpoint's.")
@click.option("--lora", "loras", multiple=True, metavar="PATH|ID:FILE[@S]", help="Fused into the weights, S strongly.")
@click.option("--variant", metavar="NAME", help="Files of the base model's repository to take, as fp16.")
@click.option("--config", metavar="PATH|ID", help="Configuration of a base model that is one file; default: the hub's.")
@click.option("--height", callback=_size, metavar="PIXELS|MIN,OPT,MAX", help="Fixed, or free in a range.")
@click.option("--width", callback=_size, metavar="PIXELS|MIN,OPT,MAX", help="Default of both: what it was trained on.")
@click.option("--steps", type=click.IntRange(1), default=30, show_default=True, help="Default of generating.")
@click.option("--guidance", type=float, default=7.5, show_default=True, help="Likewise.")
@click.option("--weights", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--no-fp16", is_flag=True, help="Leave out what GPUs run.")
@click.option("--no-parity", is_flag=True, help="Skip comparing the engine with diffusers.")
@click.option("--name", help="Name of the engine; default is the output's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The engine file to write.")
def command(
    base: str,
    adapter: str,
    checkpoint: Path | None,
    tower: str | None,
    pretrained: str | None,
    loras: tuple[str, ...],
    variant: str | None,
    config: str | None,
    height: int | Range | None,
    width: int | Range | None,
    steps: int,
    guidance: float,
    weights: str,
    no_fp16: bool,
    no_parity: bool,
    name: str | None,
    output: Path,
) -> None:
    """Make an engine that generates pictures: text encoder, UNet with image conditions, decoder, image encoder.

    The adapter must be one for the tower that the projectors stand on: ViT-H-14 for SD 1.5 and for XL's "vit-h"
    adapters, ViT-bigG-14 for the others of XL. All is loaded through diffusers and open_clip, and the engine is
    compared with diffusers on this machine before it is written. A LoRA of LCM or Hyper-SD makes a few steps enough.

    \b
    declip export-generator --base stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --adapter h94/IP-Adapter:models/ip-adapter_sd15.safetensors \\
        --checkpoint declip-vit-h.safetensors -o dp.engine
    declip export-generator --base sd15/ --adapter ip-adapter_sd15.bin --tower ViT-H-14 \\
        --pretrained laion2b_s32b_b79k --lora lcm.safetensors --steps 4 --guidance 1 -o quick.engine
    """
    fused = [_lora(value) for value in loras]
    read = [base, adapter, *(source for source, _ in fused)]
    read += [str(given) for given in (checkpoint, tower, pretrained, config) if given is not None]
    if Path(base).is_dir() and output.resolve().is_relative_to(Path(base).resolve()):
        raise UsageError(f"{output} lies in {base}, which is read here. Name another place.")
    inside = [source.replace(":", "/") for source in read]  # FOLDER:FILE
    require_place(output, [*read, *inside])  # it takes minutes until something is written there
    logging.disable(logging.ERROR)  # the libraries and their downloader log what our own messages say once
    with told_stages() as stage:
        stage("starting torch and diffusers")
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ExportError(_EXTRA) from error
        from declip_export.generator.adapter import load_adapter
        from declip_export.generator.base import load_base
        from declip_export.generator.embedder import load_embedder
        from declip_export.generator.engine import export_generator
        from declip_export.generator.lora import fuse_lora

        stored: StorageDtype = "float32" if weights == "float32" else "float16"
        stage("loading DeCLIP")
        embedder = load_embedder(tower, pretrained, checkpoint)
        stage("loading the base model")
        loaded = load_base(base, dtype=stored, variant=variant, config=config)
        for source, strength in fused:
            stage(f"fusing {source}")
            loaded = fuse_lora(loaded, source, strength)
        stage("loading the adapter")
        attached = load_adapter(adapter, loaded)
        engine = export_generator(
            loaded,
            attached,
            embedder,
            output,
            weights_dtype=stored,
            fp16=not no_fp16,
            height=height,
            width=width,
            steps=steps,
            guidance=guidance,
            parity=not no_parity,
            name=name,
            progress=stage,
        )
    if not embedder.projected:
        click.echo("  no checkpoint: perceptual and semantic conditions are those of the plain IP-Adapter", err=True)
    worst: dict[tuple[str, str], float] = {}
    for row in engine.manifest.provenance.get("parity", ()):
        what = row["component"], row["subject"]
        worst[what] = max(worst.get(what, 0.0), row["relative_error"])
    for (component, subject), difference in worst.items():
        click.echo(f"  {component}, {subject}: within {difference:.1e} of diffusers", err=True)
    tell_engine(engine)
