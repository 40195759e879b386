"""Steps of training on a bank of a frozen network's features; the best step on validation is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .features import FeatureBatch

Losses = Callable[[FeatureBatch, int, np.random.Generator], dict[str, Tensor]]
"""Named losses of a batch; the number is of no other batch of the run, the generator is the run's own."""


@dataclass(frozen=True)
class BankConfig:
    """``steps`` of AdamW with a cosine rate, each on ``merged`` batches of the bank.

    What is chosen is evaluated every ``check_every`` steps.
    """

    steps: int
    merged: int
    lr: float
    weight_decay: float
    check_every: int
    seed: int


Module = TypeVar("Module", bound=nn.Module)


def fit_on_bank(
    chosen: Module,
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    bank: Sequence[FeatureBatch],
    losses: Losses,
    config: BankConfig,
    evaluate: Callable[[Module], dict[str, float]],
    log: Callable[[dict[str, float]], None],
) -> Module:
    """A copy of ``chosen`` from the step at which ``evaluate(chosen)["choice"]`` was best, while ``parameters`` train.

    These may be groups, as torch's optimizers take them. As it is at the start, ``chosen`` takes part in the choice.
    What ``log`` gets: step, evaluation, mean losses.
    """
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    best, kept = evaluate(chosen), copy.deepcopy(chosen)
    log({"step": 0, **best})
    rng = np.random.default_rng(config.seed)
    for step in range(1, config.steps + 1):
        total: dict[str, float] = {}
        optimizer.zero_grad(set_to_none=True)
        for part, index in enumerate(rng.choice(len(bank), config.merged, replace=False)):
            found = losses(bank[index], step * config.merged + part, rng)
            (torch.stack(list(found.values())).sum() / config.merged).backward()
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + float(value.detach()) / config.merged
        optimizer.step()
        schedule.step()
        if step % config.check_every == 0:
            reached = evaluate(chosen)
            log({"step": step, **reached, **{f"loss_{name}": value for name, value in total.items()}})
            if reached["choice"] > best["choice"]:
                best, kept = reached, copy.deepcopy(chosen)
    return kept
