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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError
from declip_training.files import differences, read_json, replacing, write_json, writing
from declip_training.i2t.records import Record

from .crops import RandomCrops
from .images import FileFacts, Read, in_order, read_image
from .schedule import Rows
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
    longer than the text tower reads (None: unknown), ``gone`` images were there once and are not now.
    """

    folder: Path
    images: Halves
    texts: Halves
    usable: Rows
    unreadable: dict[int, str]
    cut: int | None
    gone: int


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

    def build(self, world: World, progress: Progress) -> Bank:
        """Build what is missing, this process its share of the blocks, and open the bank.

        Raises TrainingError where the folder holds another bank (naming what differs), where an image has changed
        since, and where the disk is full; what was done stays.
        """
        if world.leads:
            self._prepare()
        world.wait()
        # by number, not by what is missing: others are finishing blocks already
        mine = [n for n in range(world.rank, self._blocks(), world.size) if not self._marker(n).is_file()]
        total = sum(len(self._rows(number)) for number in mine)
        done = 0
        for number in mine:
            self._build_block(number, lambda n, before=done: progress("features", before + n, total))  # type: ignore[misc]
            done += len(self._rows(number))
        world.wait()
        return self._open()

    def _blocks(self) -> int:
        return -(-len(self.records) // BLOCK)

    def _rows(self, number: int) -> range:
        return range(number * BLOCK, min(len(self.records), (number + 1) * BLOCK))

    def _marker(self, number: int) -> Path:
        return self.folder / "blocks" / f"{number:05}.json"

    def _prepare(self) -> None:
        """Create the files, or check that they are of this bank and its images unchanged."""
        stated, key = self.folder / "bank.json", self.key()
        if stated.is_file():
            if unlike := differences(read_json(stated)["key"], key):
                raise TrainingError(
                    f"{self.folder} holds features of another tower or other data: {unlike}. Name another folder with "
                    "--bank, or remove this one."
                )
            self._check_images()
            return
        blocks = self.folder / "blocks"
        if self.folder.is_dir() and not blocks.is_dir() and any(self.folder.iterdir()):
            raise TrainingError(f"{self.folder} is not empty and no feature bank. Name another folder with --bank.")
        with writing(self.folder):
            blocks.mkdir(parents=True, exist_ok=True)
            for marker in blocks.glob("[0-9]*.json"):  # of a bank whose bank.json was removed
                marker.unlink()
        dim = self.towers.texts([""]).shape[1]
        _allocate(self.folder / "texts.npy", (len(self.records), 2, dim))
        if self.count:
            _allocate(self.folder / "images.npy", (len(self.records), self.count, dim))
        write_json(stated, {"key": key, "dim": dim})

    def _check_images(self) -> None:
        changed = []
        for number in range(self._blocks()):
            if not self._marker(number).is_file():
                continue
            block = read_json(self._marker(number))
            for row, facts in zip(self._rows(number), block["files"], strict=True):
                path = self.root / self.records[row].image
                same = None if facts is None else FileFacts(*facts).hold(path)
                if str(row) in block["unreadable"]:
                    if same is False or (facts is None and path.is_file()):  # it was repaired: read the block again
                        self._marker(number).unlink(missing_ok=True)
                        break
                elif same is False:
                    changed.append(str(path))
        if changed:
            raise TrainingError(
                f"{len(changed):,} images have changed since {self.folder} was made: {_first(changed)}. Put them back, "
                "name another folder with --bank, or remove this one."
            )

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
        facts = [None if r.facts is None else list(asdict(r.facts).values()) for r in read]
        reasons = {str(rows[index]): r.reason for index, r in enumerate(read) if r.reason}
        marker = {"files": facts, "unreadable": reasons, "cut": self.towers.count_cut(described)}
        with replacing(self._marker(number)) as path:
            path.write_text(json.dumps(marker, ensure_ascii=True), encoding="ascii")

    def _open(self) -> Bank:
        blocks = [read_json(self._marker(number)) for number in range(self._blocks())]
        unreadable = {int(row): reason for block in blocks for row, reason in block["unreadable"].items()}
        usable = np.array([row for row in range(len(self.records)) if row not in unreadable], np.int64)
        gone = sum(not (self.root / self.records[row].image).is_file() for row in usable)
        dim = read_json(self.folder / "bank.json")["dim"]
        texts = _map(self.folder / "texts.npy", (len(self.records), 2, dim))
        shape = (len(self.records), self.count, dim)
        images = _map(self.folder / "images.npy", shape) if self.count else np.zeros(shape, np.float16)
        counts = [block["cut"] for block in blocks]
        cut = None if None in counts else sum(counts)
        return Bank(self.folder, images, texts, usable, unreadable, cut, gone)


def records_sha256(records: Sequence[Record]) -> str:
    """Hash over ids and both texts, in order; images are recognised by their content, wherever they lie."""
    digest = hashlib.sha256()
    for record in records:
        line = json.dumps([record.id, record.perceptual, record.semantic])
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def _first(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    """An .npy of zeros whose disk space is taken now, so that a full disk shows before hours of work."""
    with replacing(path) as partial, partial.open("wb") as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.flush()
        size = stream.tell() + 2 * int(np.prod(shape))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def _map(path: Path, shape: tuple[int, ...]) -> Halves:
    try:
        mapped: Halves = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
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
