"""Where a step's features come from: the bank, or the live tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from declip_runtime.errors import TrainingError
from declip_training.i2t.records import Record

from .bank import Bank, Halves
from .crops import RandomCrops
from .images import Read, another_image, in_order, read_image
from .schedule import Rows, crop_choice
from .towers import Towers

_AT_ONCE = 1024  # pictures that are held in memory


class FeatureSource(Protocol):
    """Features of rows of the bank; ``epoch`` decides the crop, and None asks for the one of validation."""

    dim: int

    def images(self, rows: Rows, epoch: int | None) -> Tensor:
        """Float [B, D] as the tower gives them."""
        ...

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """T_p and T_s, float [B, D] each, normalised."""
        ...


@dataclass
class BankSource:
    """Gathers from a memory-mapped bank; ascending rows are read fastest."""

    crops: Halves
    described: Halves
    seed: int
    dim: int = field(init=False)
    _chosen: tuple[int | None, Rows] = field(init=False)

    def __post_init__(self) -> None:
        self.dim = self.crops.shape[2]
        self._everything = np.arange(len(self.crops))
        self._chosen = (None, np.zeros(len(self.crops), np.int64))

    def images(self, rows: Rows, epoch: int | None) -> Tensor:
        """One crop of each row, drawn anew for every epoch."""
        if epoch is None:
            return torch.from_numpy(self.crops[rows, 0])
        if self._chosen[0] != epoch:
            self._chosen = epoch, crop_choice(self._everything, self.crops.shape[1], self.seed, epoch)
        return torch.from_numpy(self.crops[rows, self._chosen[1][rows]])

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Both texts of each row."""
        return torch.from_numpy(self.described[rows, 0]), torch.from_numpy(self.described[rows, 1])


@dataclass
class LiveSource:
    """Runs the image tower on crops that no earlier epoch has seen; texts come from the bank."""

    bank: Bank
    records: Sequence[Record]
    root: Path
    towers: Towers
    crops: RandomCrops
    threads: int
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        self.dim = self.bank.texts.shape[2]

    def images(self, rows: Rows, epoch: int | None) -> Tensor:
        """Crop number 0 of each image for validation, number ``epoch + 1`` for training."""
        number = 0 if epoch is None else epoch + 1
        parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
        return torch.cat([self._embed(part, number) for part in parts])

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Both texts of each row."""
        return torch.from_numpy(self.bank.texts[rows, 0]), torch.from_numpy(self.bank.texts[rows, 1])

    def _embed(self, rows: Rows, number: int) -> Tensor:
        job = partial(read_image, folder=self.root, crops=self.crops, numbers=(number,))
        records = [self.records[row] for row in rows]
        read = list(in_order(job, records, self.threads))
        wrong = (
            r.reason or another_image(o, self.root / o.image, r.facts) or self._changed(row, r)
            for row, o, r in zip(rows, records, read, strict=True)
        )
        if reasons := [reason for reason in wrong if reason]:
            raise TrainingError(
                f"{len(reasons):,} images can no longer be read: {reasons[0]} Put them back and give the command again."
            )
        return self.towers.images([crop for r in read for crop in r.crops])

    def _changed(self, row: int, read: Read) -> str:
        """Why the image is not the one that the run began with; empty where it is, or is not known."""
        known = self.bank.sha256[row] if self.bank.sha256 else ""
        if not known or read.facts is None or read.facts.sha256 == known:
            return ""
        return f"{str(self.root / self.records[row].image)!r} has changed since."
