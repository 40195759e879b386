"""The processes that train together (torchrun), or this one alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from declip_runtime.errors import DeclipError, TrainingError

_JOINING = timedelta(minutes=30)  # for those that start later
_PATIENCE = timedelta(days=14)  # for one that makes features while others wait; gloo's limit is below 25


class LostProcessError(TrainingError):
    """One of the processes ended without a word to the others, as by a kill."""


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when all processes have: what one of them refuses in it, all of them do."""
        own: DeclipError | None = None
        try:
            yield
        except DeclipError as error:
            own = error
        everyones = self._tell(None if own is None else str(own))
        if own is not None:
            raise own
        for refusal in everyones:
            if refusal is not None:
                raise TrainingError(refusal)

    def _tell(self, refusal: str | None) -> list[str | None]:
        if self.size == 1:
            return [refusal]
        everyones: list[str | None] = [None] * self.size
        with self.exchanging():
            distributed.all_gather_object(everyones, refusal)
        return everyones

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [b, D] of all processes [size * b, D], in the order of ranks.

        The gradient of each process's rows is the sum of what all processes' losses want.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over processes, in one exchange."""
        if self.size == 1:
            return
        parts = list(tensors)
        flat = torch.cat([t.reshape(-1) for t in parts])
        with self.exchanging():
            distributed.all_reduce(flat)
        for tensor, total in zip(parts, flat.split([t.numel() for t in parts]), strict=True):
            tensor.copy_(total.view_as(tensor))

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """For what goes between processes: raises LostProcessError where one of them is gone."""
        try:
            yield
        except RuntimeError as error:  # also of gloo, and of NCCL's time-outs
            raise LostProcessError(
                f"one of the {self.size} processes that train together has ended ({_reason(error)}). See what it said, "
                "or what ended it, and give the command again: the run goes on from its last state."
            ) from error


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.own = slice(world.rank * len(rows), (world.rank + 1) * len(rows))
        ctx.world = world
        parts = [torch.empty_like(rows) for _ in range(world.size)]
        with world.exchanging():
            distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        with ctx.world.exchanging():
            distributed.all_reduce(total)
        return total[ctx.own], None


def _reason(error: Exception) -> str:
    """The first line of torch's message, without its end."""
    return str(error).strip().partition("\n")[0].rstrip(".")


@contextmanager
def join(device: str) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started, if it did; yields this process's place and its device.

    ``device`` is ``"auto"`` (a CUDA GPU where there is one), ``"cpu"``, ``"cuda"`` or as torch names it. Raises
    TrainingError where there is no such device.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        chosen = torch.device(f"cuda:{local}" if name == "cuda" else name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"there is no device {name!r}: {_reason(error)}. Use --device cpu, or cuda with a GPU."
        ) from error
    # The thread that runs backward has no context of CUDA yet when it first multiplies; torch makes one, and says so.
    warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        store, rank, size = next(rendezvous("env://", timeout=_JOINING))
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"cannot join {size} processes: {_reason(error)}. Start them with torchrun, or unset WORLD_SIZE to train "
            "alone."
        ) from error
    try:
        yield World(distributed.get_rank(), distributed.get_world_size()), chosen
    finally:
        distributed.destroy_process_group()
