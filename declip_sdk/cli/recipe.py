"""``declip recipe``: make a bundled engine again, from public data, in one resumable command."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click


@click.group("recipe")
def command() -> None:
    """Train an engine from public data with the recipe that made it."""


@command.command("nano")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with clones of the public data.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for caches, states and the engine."
)
@click.option("--steps", type=click.IntRange(min=1), help="Pre-training steps; the bundled engine's number by default.")
def nano(data: Path, out: Path, steps: int | None) -> None:
    """Train declip-nano, the bundled engine: about 75 minutes on two cores.

    DATA holds clones of nisarahmedrana/BIQ2021 (as BIQ2021), imazen/codec-corpus (codec-corpus), BIDS/BSDS500
    (BSDS500), EliSchwartz/imagenet-sample-images (imagenet-sample), and flickr8k with data/images from
    RlNZLER/Image-Text-Matching at ae2cf6e and Flickr8k_text/Flickr8k.token.txt. A run that was stopped goes on where
    it stopped when the same command is given again.
    """
    from dataclasses import replace

    from declip_export.engine import export_engine
    from declip_runtime.manifest import License
    from declip_training.pretrain import PretrainConfig
    from declip_training.recipes.nano import Nano

    config = PretrainConfig() if steps is None else replace(PretrainConfig(), steps=steps)
    result = Nano(data, out, config, lambda line: click.echo(line, err=True)).run()
    licence = resources.files("declip_runtime").joinpath("models/MODEL_LICENSE").read_text(encoding="utf-8")
    engine = export_engine(
        result.declip,
        result.preprocess,
        result.scores,
        out / "declip-nano.engine",
        name="declip-nano",
        license=License("DeCLIP-nano research and benchmarking licence", licence),
        provenance={"recipe": "declip recipe nano", "card": result.card},
    )
    click.echo(f"{engine.path} ({engine.path.stat().st_size / 1e6:.1f} MB), id {engine.id}")
