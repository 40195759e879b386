"""One training run from records to checkpoints: the bank, the split, the loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_training.evaluation.ladders import LADDERS
from declip_training.files import replacing, write_json
from declip_training.i2t.records import Record, read_records
from declip_training.model.checkpoint import ProjectorCheckpoint, load_projectors, save_projectors, tower_probe

from .bank import Bank, BankBuilder, Progress, images_known, records_sha256
from .crops import RandomCrops
from .curves import Curves
from .loop import Heads, Reporting, Trainer, steps_per_epoch
from .report import disentanglement, measure
from .report_files import write_report
from .run_folder import RunFolder
from .schedule import held_out, together
from .seen import count_trained_on
from .settings import TrainSettings
from .sole import sole
from .source import BankSource, FeatureSource, LiveSource
from .towers import Towers
from .world import World

_SHOWN = 3


@dataclass(frozen=True)
class Job:
    """A run as it was asked for. ``bank`` None keeps the bank in the run's folder; ``init`` starts from projectors."""

    records: Path
    folder: Path
    settings: TrainSettings
    bank: Path | None = None
    init: Path | None = None
    skip_unreadable: bool = False
    tensorboard: bool = False
    threads: int = 4
    log_every: int = 50
    save_every: int = 500

    @property
    def bank_folder(self) -> Path:
        """Where the feature bank is."""
        return self.bank or self.folder / "bank"


def train(
    job: Job,
    towers: Towers,
    world: World,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run ``job``, or go on with it; returns its summary, which has ``"already": True`` where it was finished before.

    Raises TrainingError for everything in the data or the settings that cannot be trained on, CheckpointError for
    ``init`` projectors that are damaged or of another tower.
    """
    with world.together():
        records = read_records(job.records)
        _split([r.id for r in records], job.settings, world)  # what cannot work shows before hours of features
        start = None if job.init is None else _initial(job.init, towers, job.settings)
    with sole(job.folder, world, say):
        return _train(job, towers, world, records, start, progress, say if world.leads else lambda line: None)


def _train(
    job: Job,
    towers: Towers,
    world: World,
    records: Sequence[Record],
    start: ProjectorCheckpoint | None,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    folder, settings = RunFolder(job.folder), job.settings
    identity = {**asdict(settings), **towers.identity(), "records_sha256": records_sha256(records)}
    identity["init_sha256"] = None if start is None else start.sha256
    with world.together():
        if world.leads:
            folder.agree(identity)
        curves = Curves(job.folder / "tensorboard") if job.tensorboard and world.leads else None
    finished = folder.summary()
    if finished is not None:
        folder.require_made()
        return {**finished, "already": True}

    root = job.records.parent.resolve()
    crops = RandomCrops(towers.preprocess, settings.crop_side, settings.seed)
    count = 0 if settings.live else settings.crops
    bank = BankBuilder(job.bank_folder, records, root, towers, crops, count, job.threads).build(world, progress, say)
    _tell(bank, len(records), job.skip_unreadable, say)
    usable = bank.usable
    ids, images = [records[row].id for row in usable], [bank.sha256[row] for row in usable]
    with world.together():
        if world.leads:
            folder.agree({"used_records": len(usable), "used_sha256": _sha256(ids), "images_sha256": _sha256(images)})
        validates = _split(together(ids, images), settings, world)
        if world.leads:
            held = _sha256([i for i, validated in zip(ids, validates, strict=True) if validated])
            folder.require_split(held)

    source: FeatureSource = (
        LiveSource(bank, records, root, towers, crops, job.threads)
        if settings.live
        else BankSource(bank.images, bank.texts, settings.seed)
    )
    heads = Heads(source.dim, settings)
    if start is not None:
        heads.perceptual.load_state_dict(start.perceptual.state_dict())
        heads.semantic.load_state_dict(start.semantic.state_dict())

    probe = tower_probe(towers.visual)

    def save(trained: Heads, path: Path) -> None:
        checkpoint = ProjectorCheckpoint(
            towers.tower, towers.pretrained, identity["tower_sha256"], trained.perceptual, trained.semantic, probe=probe
        )
        with replacing(path) as partial:
            save_projectors(partial, checkpoint)

    reporting = Reporting(progress, log_every=job.log_every, save_every=job.save_every)
    if curves is not None:
        reporting = replace(reporting, scalars=curves.write)
    split = usable[~validates], usable[validates]
    trainer = Trainer(heads, source, split, settings, folder, save, world, towers.device, reporting)
    result = trainer.run()
    counts = {"train": int((~validates).sum()), "validation": int(validates.sum()), "unreadable": len(bank.unreadable)}
    summary = {"steps": trainer.steps, **counts, "texts_cut": bank.cut, **result}
    with world.together():
        if world.leads:
            write_json(folder.summary_file, summary)
    return summary


def _sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _split(ids: Sequence[str], settings: TrainSettings, world: World) -> npt.NDArray[np.bool_]:
    """Which records are held out; TrainingError where either part is too small."""
    validates = held_out(ids, settings.validation)
    if settings.validation and validates.sum() < 2:
        raise TrainingError(
            f"a validation share of {settings.validation:g} holds out {int(validates.sum())} of {len(ids):,} records, "
            "2 are needed. Give a larger --validation, or --validation 0 to keep the last step instead of the best."
        )
    steps_per_epoch(int((~validates).sum()), settings.batch, world.size)
    return validates


def _initial(path: Path, towers: Towers, settings: TrainSettings) -> ProjectorCheckpoint:
    checkpoint = load_projectors(path)
    checkpoint.require_tower(towers.visual, towers.tower)
    for role in (checkpoint.perceptual, checkpoint.semantic):
        if (role.latent, role.activation) != (settings.latent, settings.activation):
            raise TrainingError(
                f"{path} holds projectors of width {role.latent}, SiLU {role.activation!r}, and {settings.latent}, "
                f"{settings.activation!r} was asked for. Give --latent {role.latent} --activation {role.activation}."
            )
    return checkpoint


def _tell(bank: Bank, total: int, skip: bool, say: Callable[[str], None]) -> None:
    if bank.unreadable:
        reasons = list(bank.unreadable.values())
        told = " ".join(reasons[:_SHOWN]) + (" ..." if len(reasons) > _SHOWN else "")
        counted = f"{len(reasons):,} of {total:,} images cannot be used: {told}"
        if not skip:
            raise TrainingError(f"{counted} Repair them and run again, or train without them: --skip-unreadable.")
        if not len(bank.usable):
            raise TrainingError(f"{counted} Nothing is left to train on. Check the paths in the records.")
        say(f"{counted} They are left out.")
    if bank.cut is None:
        say("whether texts are longer than the text tower reads is unknown: its tokenizer does not tell.")
    elif bank.cut:
        say(f"{bank.cut:,} of {2 * total:,} texts are longer than the text tower reads and were cut at its end.")
    if bank.gone:
        say(f"{bank.gone:,} images are no longer there; their features in the bank are used.")


def report_run(
    job: Job,
    towers: Towers,
    table: Path,
    *,
    kinds: Sequence[str] | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the disentanglement report of a run's best projectors on the records in ``table``; returns its folder.

    Raises TrainingError for records that cannot be used.
    """
    with sole(job.folder, World(), say):
        return _report(job, towers, table, tuple(LADDERS) if kinds is None else kinds, progress, say)


def _report(
    job: Job, towers: Towers, table: Path, kinds: Sequence[str], progress: Progress, say: Callable[[str], None]
) -> Path:
    records, root = read_records(table), table.parent.resolve()
    run = RunFolder(job.folder)
    checkpoint = load_projectors(run.best)
    measured, reasons = measure(
        towers, records, root, kinds=kinds, skip_unreadable=job.skip_unreadable, threads=job.threads, progress=progress
    )
    notes = [f"{len(measured.clean):,} records of {table.name}, projectors {checkpoint.sha256[:12]} on {towers.tower}"]
    if (run.summary() or {}).get("best_step") == 0:
        notes.append("**the projectors are those of step 0, not trained**: no later step was better on validation")
    known = read_records(job.records)
    read = images_known(job.bank_folder, known)
    seen = count_trained_on(known, read, job.settings.validation, measured)
    if seen:
        notes.append(f"**{seen:,} of the records were trained on**: this shows memory, not decoupling")
        say(f"{seen:,} of {len(measured.clean):,} records of the report were trained on. Give records that were not.")
    if reasons:
        notes.append(f"{len(reasons):,} images could not be read and are left out")
        say(
            f"{len(reasons):,} of {len(records):,} images of the report cannot be read: {reasons[0]} They are left out."
        )
    result = disentanglement(measured, checkpoint.perceptual, checkpoint.semantic)
    folder = job.folder / "report"
    write_report(folder, {**result, "trained_on": seen, "notes": notes})
    return folder
