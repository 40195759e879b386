"""Which step of a fit is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from declip_training.bank_fit import BankConfig, fit_on_bank
from declip_training.data.batches import BatchLabels
from declip_training.features import FeatureBatch

CONFIG = BankConfig(steps=4, merged=1, lr=0.1, weight_decay=0.0, check_every=1, seed=0)
LABELS = BatchLabels(
    np.zeros(1, np.float32), np.zeros(1, np.int64), np.zeros((1, 3), np.float32), (), np.zeros((0, 2), np.float32), (),
    (), np.zeros(0, np.float32),
)  # fmt: skip


@pytest.mark.parametrize(
    ("choices", "slack", "kept"),
    [
        ([0.5, 0.6, 0.7, 0.6, 0.65], 0.0, 2),
        ([0.5, 0.6, 0.7, 0.7, 0.65], 0.0, 2),
        ([0.5, 0.6, 0.7, 0.6, 0.696], 0.005, 4),
        ([0.5, 0.6, 0.7, 0.697, 0.694], 0.005, 3),  # from the best one, not from the one before
        ([0.5, 0.4, 0.4, 0.4, 0.4], 0.005, 0),
    ],
)
def test_the_best_step_is_kept_or_a_later_one_hardly_worse(choices: list[float], slack: float, kept: int) -> None:
    weight = nn.Linear(1, 1, bias=False)
    left, seen = iter(choices), []

    def evaluate(module: nn.Linear) -> dict[str, float]:
        seen.append(float(module.weight.detach()))
        return {"choice": next(left)}

    def losses(batch: FeatureBatch, number: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"one": weight(batch.features).sum()}

    config = BankConfig(**{**vars(CONFIG), "slack": slack})
    bank = [FeatureBatch(torch.ones(1, 1), LABELS)]
    found = fit_on_bank(weight, weight.parameters(), bank, losses, config, evaluate, lambda _: None)
    assert len(set(seen)) == 5
    assert float(found.weight.detach()) == seen[kept]
