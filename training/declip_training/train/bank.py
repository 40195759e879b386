"""Feature bank: the frozen towers run once over crops and texts, training touches only what they gave.

A folder with ``images.npy`` float16 [N, C, D] (not normalised), ``texts.npy`` float16 [N, 2, D] (T_p, T_s;
normalised), ``bank.json`` (the key: what it was made from) and ``blocks/NUMBER.json``, written after the rows of a
block have reached the disk. What is killed goes on with the first block that has no such file. FP16 keeps 11 bits of
the mantissa, more than the bf16 in which training multiplies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_training.files import allocate_npy, differences, read_json, replacing, write_json, writing
from declip_training.i2t.records import Record

from .block import Block
from .crops import RandomCrops
from .images import Read, another_image, in_order, read_image
from .schedule import Rows
from .sole import sole
from .towers import Towers
from .world import World

Halves = npt.NDArray[np.float16]
Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""

BLOCK = 1024
_TOGETHER = 64  # crops that the tower sees at once
_FORMAT = 1


@dataclass(frozen=True)
class Bank:
    """A finished bank, memory-mapped.

    ``usable`` are the rows whose image could be read, ``unreadable`` says why the others could not. ``cut`` texts were
    longer than the text tower reads (None: unknown), ``gone`` images were there once and are not now. ``sha256`` are
    the images' hashes by row, empty where nothing was read.
    """

    folder: Path
    images: Halves
    texts: Halves
    usable: Rows
    unreadable: dict[int, str]
    cut: int | None
    gone: int
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class BankBuilder:
    """Makes the bank of ``records`` in ``folder``; images lie relative to ``root``. ``count`` 0 stores texts only."""

    folder: Path
    records: Sequence[Record]
    root: Path
    towers: Towers
    crops: RandomCrops
    count: int
    threads: int = 4

    def key(self) -> dict[str, Any]:
        """What the features are made from, except for the images' content, which the blocks know."""
        preprocess = self.crops.preprocess
        return {
            "format": _FORMAT,
            **self.towers.identity(),
            "precision": self.towers.precision,
            "records": len(self.records),
            "records_sha256": records_sha256(self.records),
            "crops": self.count,
            "crop_side": self.crops.least,
            "seed": self.crops.seed,
            "pixels": preprocess.size,
            "interpolation": preprocess.interpolation,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        }

    def build(self, world: World, progress: Progress, say: Callable[[str], None] = lambda line: None) -> Bank:
        """Build what is missing, this process its share of the blocks, and open the bank.

        Where another run is at it, ``say`` is told and its end waited for. Raises TrainingError where the folder holds
        another bank (naming what differs), where an image has changed since, and where the disk is full; what was done
        stays.
        """
        with world.together():
            self._require_room()
        with sole(self.folder / "blocks", world, say, wait=True):
            with world.together():
                if world.leads:
                    self._prepare()
            # by number, not by what is missing: others are finishing blocks already
            mine = [n for n in range(world.rank, self._blocks(), world.size) if not self._marker(n).is_file()]
            total = sum(len(self._rows(number)) for number in mine)
            done = 0
            with world.together():
                for number in mine:
                    self._build_block(number, lambda n, before=done: progress("features", before + n, total))  # type: ignore[misc]
                    done += len(self._rows(number))
            return self._open()

    def _blocks(self) -> int:
        return -(-len(self.records) // BLOCK)

    def _rows(self, number: int) -> range:
        return _rows(number, len(self.records))

    def _marker(self, number: int) -> Path:
        return _marker(self.folder, number)

    def _require_room(self) -> None:
        if self.folder.is_dir() and not (self.folder / "blocks").is_dir() and any(self.folder.iterdir()):
            raise TrainingError(f"{self.folder} is not empty and no feature bank. Name another folder with --bank.")

    def _prepare(self) -> None:
        """Create the files, or check that they are of this bank and its images unchanged."""
        stated, key = self.folder / "bank.json", self.key()
        if stated.is_file():
            known = _stated(self.folder)
            if "config_sha256" in key and "config_sha256" not in known["key"]:  # of before it was written down
                known["key"]["config_sha256"] = key["config_sha256"]
                write_json(stated, known)
            if unlike := differences(known["key"], key):
                raise TrainingError(
                    f"{self.folder} holds features of another tower or other data: {unlike}. Name another folder with "
                    "--bank, or remove this one."
                )
            self._features()
            self._check_images()
            return
        for marker in (self.folder / "blocks").glob("[0-9]*.json"):  # of a bank whose bank.json was removed
            marker.unlink()
        dim = self.towers.texts([""]).shape[1]
        with replacing(self.folder / "texts.npy") as partial:
            allocate_npy(partial, (len(self.records), 2, dim), np.float16)
        if self.count:
            with replacing(self.folder / "images.npy") as partial:
                allocate_npy(partial, (len(self.records), self.count, dim), np.float16)
        write_json(stated, {"key": key, "dim": dim})

    def _check_images(self) -> None:
        """Have blocks built again in which an image can be read now that could not; refuse images that changed."""
        changed, again = [], []
        for number in range(self._blocks()):
            marker, rows = self._marker(number), self._rows(number)
            if not marker.is_file():
                continue
            block = Block.read(marker, rows)
            reasons = self._read_again(list(block.unreadable))
            if reasons.keys() < block.unreadable.keys():
                again.append(marker)
            elif reasons != block.unreadable:
                replace(block, unreadable=reasons).write(marker)
            for row, facts in zip(rows, block.files, strict=True):
                path = self.root / self.records[row].image
                if row not in block.unreadable and facts is not None and facts.hold(path) is False:
                    changed.append(str(path))
        if changed:
            raise TrainingError(
                f"{len(changed):,} images have changed since {self.folder} was made: {_first(changed)}. Put them back; "
                "or, to train on what they are now, remove this folder or name another with --bank, and give another "
                "-o if training had begun."
            )
        for marker in again:
            marker.unlink(missing_ok=True)

    def _read_again(self, rows: Sequence[int]) -> dict[int, str]:
        """Why images cannot be read; those that can are not in it."""
        job = partial(read_image, folder=self.root, crops=self.crops, numbers=())
        results = in_order(job, [self.records[row] for row in rows], self.threads)
        return {row: result.reason for row, result in zip(rows, results, strict=True) if result.reason}

    def _build_block(self, number: int, progress: Callable[[int], None]) -> None:
        rows = self._rows(number)
        records = self.records[rows.start : rows.stop]
        described = [text for r in records for text in (r.perceptual, r.semantic)]
        texts = self.towers.texts(described).cpu().numpy().reshape(len(records), 2, -1)
        _write_rows(self.folder / "texts.npy", rows, texts, self.records)
        images = np.zeros((len(records), self.count, texts.shape[2]), np.float32)
        read: list[Read] = []
        waiting: list[int] = []

        def run_tower() -> None:
            pixels = [crop for index in waiting for crop in read[index].crops]
            if pixels:
                images[waiting] = self.towers.images(pixels).cpu().numpy().reshape(len(waiting), self.count, -1)
            for index in waiting:
                read[index] = Read([], read[index].facts)
            waiting.clear()

        job = partial(read_image, folder=self.root, crops=self.crops, numbers=range(self.count))
        for index, result in enumerate(in_order(job, records, self.threads)):
            read.append(result)
            if not result.reason:
                waiting.append(index)
            if len(waiting) * max(1, self.count) >= _TOGETHER:
                run_tower()
                progress(index + 1)
        run_tower()
        progress(len(records))
        if self.count:
            _write_rows(self.folder / "images.npy", rows, images, self.records)
        reasons = {row: r.reason for row, r in zip(rows, read, strict=True) if r.reason}
        Block([r.facts for r in read], reasons, self.towers.count_cut(described)).write(self._marker(number))

    def _open(self) -> Bank:
        images, texts = self._features()
        blocks = [Block.read(self._marker(number), self._rows(number)) for number in range(self._blocks())]
        files = [facts for block in blocks for facts in block.files]
        unreadable = {row: reason for block in blocks for row, reason in block.unreadable.items()}
        for row, (record, facts) in enumerate(zip(self.records, files, strict=True)):
            # of the table as it is now, not of the one that the bank was made from
            if row not in unreadable and (reason := another_image(record, self.root / record.image, facts)):
                unreadable[row] = reason
        usable = np.array([row for row in range(len(self.records)) if row not in unreadable], np.int64)
        gone = sum(not (self.root / self.records[row].image).is_file() for row in usable)
        counts = [block.cut for block in blocks]
        cut = None if None in counts else sum(count for count in counts if count is not None)
        hashes = tuple("" if facts is None else facts.sha256 for facts in files)
        return Bank(self.folder, images, texts, usable, unreadable, cut, gone, hashes)

    def _features(self) -> tuple[Halves, Halves]:
        dim, records = _stated(self.folder)["dim"], len(self.records)
        shape = (records, self.count, dim)
        images = _map(self.folder / "images.npy", shape) if self.count else np.zeros(shape, np.float16)
        return images, _map(self.folder / "texts.npy", (records, 2, dim))


def images_known(folder: Path, records: Sequence[Record]) -> list[str | None]:
    """SHA-256 of the images of ``records``, as far as their bank is in ``folder``; empty where it is not known, None
    where there was no picture."""
    hashes: list[str | None] = [""] * len(records)
    if not (folder / "bank.json").is_file():
        return hashes
    if _stated(folder)["key"].get("records_sha256") != records_sha256(records):
        return hashes
    for number in range(-(-len(records) // BLOCK)):
        rows = _rows(number, len(records))
        if _marker(folder, number).is_file():
            block = Block.read(_marker(folder, number), rows)
            for row, facts in zip(rows, block.files, strict=True):
                hashes[row] = None if facts is None or row in block.unreadable else facts.sha256
    return hashes


def _rows(number: int, records: int) -> range:
    return range(number * BLOCK, min(records, (number + 1) * BLOCK))


def _marker(folder: Path, number: int) -> Path:
    return folder / "blocks" / f"{number:05}.json"


def _stated(folder: Path) -> dict[str, Any]:
    path = folder / "bank.json"
    stated: dict[str, Any] = read_json(path)
    match stated:
        case {"key": dict(), "dim": int()}:
            return stated
    raise TrainingError(f"{path} is not of a feature bank. Name another folder with --bank.")


def records_sha256(records: Sequence[Record]) -> str:
    """Hash over ids and both texts, in order; images are recognised by their content, wherever they lie."""
    digest = hashlib.sha256()
    for record in records:
        line = json.dumps([record.id, record.perceptual, record.semantic])
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def _first(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _map(path: Path, shape: tuple[int, ...]) -> Halves:
    try:
        mapped: Halves = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Remove its folder and run again.") from error
    if mapped.shape != shape or mapped.dtype != np.float16:
        raise TrainingError(f"{path} is {mapped.dtype} {mapped.shape}, not {shape}. Remove its folder and run again.")
    return mapped


def _write_rows(path: Path, rows: range, values: npt.NDArray[np.float32], records: Sequence[Record]) -> None:
    """Write ``values`` [len(rows), ...] to the disk; not through a mapping, where a full disk would be a crash."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    wrong = np.flatnonzero(~np.isfinite(halves).reshape(len(rows), -1).all(axis=1))
    if len(wrong):
        names = [repr(records[rows[index]].id) for index in wrong]
        raise TrainingError(
            f"the tower gives no finite FP16 features for {len(names):,} records: {_first(names)}. Check the tower's "
            "weights, or try --precision fp32."
        )
    with writing(path), path.open("r+b") as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise TrainingError(f"{path} is not a bank's file. Remove its folder and run again.")
        np.lib.format.read_array_header_1_0(stream)
        stream.seek(stream.tell() + halves[0].nbytes * rows.start)
        stream.write(halves.tobytes())
        stream.flush()
        os.fsync(stream.fileno())
