"""``declip recipe``: make a bundled engine again, from public data, in one resumable command."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from declip_runtime.errors import TrainingError

_EXTRA = "The recipe needs torch, open_clip and SciPy. Run: pip install 'declip-sdk[recipe]'"


@click.group("recipe")
def command() -> None:
    """Train an engine from public data with the recipe that made it."""


@command.command("nano")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with clones of the public data.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for caches, states and the engine."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of the tower's training; those of the bundled engine by default.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda or as torch names it.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that draw the tower's batches; every core but one beside a GPU, none on a CPU by default.",
)
@click.option(
    "--ledger", type=click.Path(path_type=Path), help="CSV that records every look at Test; in --out by default."
)
@click.option("--note", default="", help="A remark for the ledger.")
def nano(
    data: Path, out: Path, steps: int | None, device: str, workers: int | None, ledger: Path | None, note: str
) -> None:
    """Train declip-nano, the bundled engine, from public data: an hour or two with a GPU, a night without.

    DATA holds clones of nisarahmedrana/BIQ2021 (as BIQ2021), imazen/codec-corpus (codec-corpus), BIDS/BSDS500
    (BSDS500), EliSchwartz/imagenet-sample-images (imagenet-sample), and flickr8k with data/images from
    RlNZLER/Image-Text-Matching at ae2cf6e and the official Flickr8k_text/Flickr8k.token.txt and
    Flickr8k_text/Flickr_8k.testImages.txt; for judging only, csjunxu/PolyU-Real-World-Noisy-Images-Dataset (polyu). A
    run that was stopped goes on where it stopped when the same command is given again.
    """
    try:
        import scipy  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise TrainingError(_EXTRA) from error
    from dataclasses import replace

    from declip_export.engine import export_engine
    from declip_runtime.cpu import available_cpus
    from declip_runtime.engine_file import EngineFile
    from declip_runtime.engine_writer import write_engine
    from declip_runtime.manifest import License
    from declip_runtime.scorer_manifest import Validation
    from declip_training.evaluation.biq2021 import evaluate_engine
    from declip_training.evaluation.camera_noise import read_polyu
    from declip_training.evaluation.judges import judge_engine, to_markdown
    from declip_training.evaluation.ledger import FILE_NAME, append_ledger, require_ledger
    from declip_training.recipes.nano import Nano
    from declip_training.recipes.nano_card import model_card
    from declip_training.recipes.nano_data import Sources
    from declip_training.recipes.nano_result import NanoResult
    from declip_training.recipes.nano_settings import PRETRAIN
    from declip_training.train.world import join

    sources = Sources(data)
    read_polyu(sources.polyu)  # what is missing is said before the training, not after it
    if ledger is not None:
        require_ledger(ledger)
    config = PRETRAIN if steps is None else replace(PRETRAIN, steps=steps)
    with join(device) as (_, chosen):
        if workers is None:
            workers = 0 if chosen.type == "cpu" else max(1, available_cpus() - 1)
        result = Nano(data, out, config, lambda line: click.echo(line, err=True), chosen, workers).run()
    licence = resources.files("declip_runtime").joinpath("models/MODEL_LICENSE").read_text(encoding="utf-8")

    draft = out / "draft.engine"  # until it is judged and says so

    def export(made: NanoResult) -> EngineFile:
        return export_engine(
            made.declip,
            made.preprocess,
            made.scores,
            draft,
            parity_images=made.photos,
            name="declip-nano",
            license=License("DeCLIP-nano research and benchmarking licence", licence),
            provenance=made.provenance(),
        )

    engine = export(result)
    click.echo("judging by ladders and cameras that training does not know", err=True)
    judgement = judge_engine(engine.path, sources)
    selective = [a.name for a in judgement.selectivity.attributes if a.validated]
    offered = ["quality", *selective]
    if dropped := [spec.name for spec in result.scores if spec.name not in offered]:
        click.echo(f"not offered, because other ladders move them too: {', '.join(dropped)}", err=True)
        result = result.offering(offered)
        engine = export(result)
        # What is left scores as it did: how the others failed is worth more than ten minutes of the same numbers.
        about = {**judgement.engine, "engine id": engine.id, "judged and not offered": ", ".join(dropped)}
        judgement = replace(judgement, engine=about)
    (out / "judges.md").write_text(to_markdown(judgement), encoding="utf-8")
    click.echo("judging on BIQ2021 Test and on ladders of unseen photos", err=True)
    row = evaluate_engine(engine.path, sources, score="quality")
    append_ledger(ledger or out / FILE_NAME, row, note)
    validated = {
        "quality": Validation(
            "BIQ2021 Test without near-duplicates",
            float(row["mean"]),
            int(row["n_unique"]),
            "mean of the three subsets' SRCC",
        ),
        **{
            attribute.name: Validation(
                "ladders of known strength, no opinions",
                round(min(attribute.ranks.values()), 4),
                judgement.n_photos,
                "the score follows them and no other ladder as far",
            )
            for attribute in judgement.selectivity.attributes
        },
    }
    specs = tuple(replace(spec, validated=validated[spec.name]) for spec in result.scores)
    card = model_card(result.card["validation"], row, judgement, specs)
    provenance = {**engine.manifest.provenance, "model_card": card}
    manifest = replace(engine.scorer, scores=specs, provenance=provenance)
    # what was judged is kept to the byte, and its id: notes and card decide no score
    entries = {name: engine.chunks(name) for name in engine.manifest.entries}
    engine = write_engine(out / "declip-nano.engine", manifest, entries)
    draft.unlink()
    for name, value in row.items():
        click.echo(f"{name:22} {value}", err=True)
    click.echo(f"{engine.path} ({engine.path.stat().st_size / 1e6:.1f} MB), id {engine.id}")
