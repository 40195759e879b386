"""How long the paper's whole schedule takes on a feature bank, and how many times longer with the tower live.

    python benchmarks/projector_training.py [--epochs 200] [--records 112769] [--live-steps 2] [--device cpu]

Trained is what `declip train` trains, with its log, its state every 500 steps and its validation every epoch: 112,769
records, batch 1024, 200 epochs (section 4.1 of arXiv 2503.02206), on a bank of synthetic features of width 512, written
to --folder (1 GB). Fewer epochs are extrapolated, and the row says so. The live rows are a few steps of the same
training in which ViT-B/32 (random weights: they decide no speed) sees fresh crops of 640 x 480 JPEGs; they too are
extrapolated to the whole schedule. A bank of 4 crops an image costs 4 passes of the tower instead of 200.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Bar, Others, save
from PIL import Image

from declip_runtime.benchmark import Row
from declip_runtime.cpu import available_cpus
from declip_training.arithmetic import computes_in_bf16
from declip_training.i2t.records import Record
from declip_training.train.bank import Bank, Halves
from declip_training.train.crops import RandomCrops
from declip_training.train.loop import Heads, Reporting, Trainer
from declip_training.train.run_folder import RunFolder
from declip_training.train.settings import Precision, TrainSettings
from declip_training.train.source import BankSource, FeatureSource, LiveSource
from declip_training.train.towers import Towers
from declip_training.train.world import World

RECORDS, EPOCHS, BATCH, DIM = 112_769, 200, 1024, 512
VALIDATION = 2_048  # records beside those that are trained on
TOWER = "ViT-B-32"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the run on the bank")
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--live-steps", type=int, default=2, help="0 measures no live tower")
    parser.add_argument("--precision", action="append", choices=["bf16", "fp32"], help="default: the faster one")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--folder", type=Path, help="where the bank is written; default: the system's temporary one")
    parser.add_argument("--name", default="projector_training", help="of the result files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    device = torch.device(options.device)
    precisions: list[Precision] = options.precision or ["bf16" if computes_in_bf16(device) else "fp32"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        images, texts = synthetic_bank(folder, options.records + VALIDATION, options.crops)
        for precision in precisions:
            settings = TrainSettings(epochs=options.epochs, batch=options.batch, precision=precision)
            rows.append(measure("bank", BankSource(images, texts, 0), folder / precision, settings, options))
            if options.live_steps:
                source = live_source(folder, texts, precision, options)
                short = dataclasses.replace(settings, epochs=1)
                rows.append(measure("live", source, folder / f"{precision}-live", short, options))
                rows.append(building(rows[-1], options.crops))
        for row in rows:
            row["x bank"] = round(
                float(row["minutes for the schedule"]) / float(rows[0]["minutes for the schedule"]), 1
            )
    save(options.name, f"The paper's training schedule ({TOWER}'s width)", rows, bars(rows, options))


def synthetic_bank(folder: Path, records: int, crops: int) -> tuple[Halves, Halves]:
    """Memory-mapped features that look like a bank's, and texts; random, because values decide no speed."""
    rng = np.random.default_rng(0)
    shapes = {"images": (records, crops, DIM), "texts": (records, 2, DIM)}
    mapped = []
    for name, shape in shapes.items():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
        for start in range(0, records, 4096):
            part = rng.standard_normal((min(4096, records - start), *shape[1:]), np.float32)
            array[start : start + 4096] = part / (np.linalg.norm(part, axis=2, keepdims=True) if name == "texts" else 1)
        array.flush()
        mapped.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return mapped[0], mapped[1]


def live_source(folder: Path, texts: Halves, precision: Precision, options: Any) -> FeatureSource:
    """The tower on crops of 64 JPEGs, which stand for as many as there are records."""
    rng = np.random.default_rng(1)
    for index in range(64):
        noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)
    records = [Record(str(i), f"{i % 64}.jpg", "look", "content") for i in range(len(texts))]
    towers = Towers.load(TOWER, "random", torch.device(options.device), precision)
    empty = np.zeros((len(texts), 0, DIM), np.float16)
    bank = Bank(folder, empty, texts, np.arange(len(texts)), {}, 0, 0)
    return LiveSource(bank, records, folder, towers, RandomCrops(towers.preprocess, 0.7, 0), options.threads)


def measure(what: str, source: FeatureSource, folder: Path, settings: TrainSettings, options: Any) -> Row:
    """Train and time it; a live run is stopped after so many steps."""
    folder.mkdir()
    live = what == "live"
    rows = np.arange(options.records)
    validation = np.arange(options.records, options.records + (0 if live else VALIDATION))
    times: list[float] = []

    def progress(_stage: str, done: int, total: int) -> None:
        times.append(time.perf_counter())
        if done % 500 == 0:
            print(f"{what} {settings.precision}: {done} of {total} steps", file=sys.stderr, flush=True)
        if live and done > options.live_steps:  # the first is a warm-up
            raise _EnoughError

    trainer = Trainer(
        Heads(DIM, settings), source, (rows, validation), settings, RunFolder(folder),
        lambda heads, path: None, World(), torch.device(options.device), Reporting(progress),
    )  # fmt: skip
    others, began = Others(), time.perf_counter()
    try:
        trainer.run()
    except _EnoughError:
        began = times[0]
    seconds = time.perf_counter() - began
    steps = len(times) - live
    whole = EPOCHS * (RECORDS // settings.batch)
    between = 1000 * np.diff(times)
    return {
        "features from": what,
        "tower": TOWER if live else "(none: synthetic)",
        "precision": settings.precision,
        "device": _name(options.device),
        "threads": options.threads,
        "batch": settings.batch,
        "steps measured": steps,
        "seconds": round(seconds, 1),
        "ms/step": round(1000 * seconds / steps, 2),
        "ms/step p50": round(float(np.median(between)), 2),
        "minutes for the schedule": round(seconds / steps * whole / 60, 2),
        "schedule": "measured whole" if steps == whole else f"extrapolated to {whole:,} steps",
        **others.column(),
    }


def building(live: Row, crops: int) -> Row:
    """What the bank costs before: a live epoch for each crop, at most, because an image is read once for all."""
    minutes = round(float(live["minutes for the schedule"]) * crops / EPOCHS, 2)
    kept = {name: live[name] for name in ("tower", "precision", "device", "threads", "batch")}
    from_live = {"minutes for the schedule": minutes, "schedule": "extrapolated from the live row"}
    return {"features from": f"building a bank of {crops} crops", **kept, **from_live}


def bars(rows: list[Row], options: Any) -> list[Bar]:
    """The promise, which is one for CPUs."""
    if options.device != "cpu":
        return []
    minutes = float(rows[0]["minutes for the schedule"])
    return [Bar(f"the paper's schedule on a bank, minutes on {options.threads} CPU cores", 15, minutes, at_most=True)]


def _name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


class _EnoughError(Exception):
    """Ends a live run."""


if __name__ == "__main__":
    main()
