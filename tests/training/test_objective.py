"""What an embedding must satisfy: finite where the tower is sure of itself, and attributes that move alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from declip_training.data.attributes import ALTERATIONS, ATTRIBUTES, CHANGES
from declip_training.data.batches import BatchLabels
from declip_training.data.distortions import DISTORTIONS
from declip_training.objective import RISE, STILL, PerceptualObjective, attribute_movements

RUNGS = np.array([0.0, 0.2, 0.5, 0.9], np.float32)
DIM = 16


def labels(*kinds: str, rated: int = 6) -> BatchLabels:
    return BatchLabels(
        np.linspace(0, 1, rated, dtype=np.float32),
        np.arange(rated) % 2,
        np.random.default_rng(0).random((rated, 3)).astype(np.float32),
        kinds,
        np.tile(RUNGS, (len(kinds), 1)),
        ("a thing",),
        (),
        np.zeros(0, np.float32),
    )


def moving(kinds: Sequence[str], far: float, stray: float = 0.0, wrong: int = 1) -> Tensor:
    """Logits [T * R, A] that move as they should, ``far`` over a severity of 1, all others by ``stray``."""
    signs = torch.tensor([[float(a.moved_by.get(kind, 0)) for a in ATTRIBUTES] for kind in kinds])
    each = wrong * far * signs + stray * (signs == 0)
    return (each[:, None] * torch.from_numpy(RUNGS)[:, None]).flatten(0, 1)


def test_attributes_that_move_as_far_as_asked_and_alone_cost_nothing() -> None:
    kinds = tuple(CHANGES)
    assert attribute_movements(moving(kinds, RISE), labels(*kinds)) == pytest.approx(0, abs=1e-6)
    assert attribute_movements(moving(kinds, 2 * RISE), labels(*kinds)) == pytest.approx(0, abs=1e-6)
    short = attribute_movements(moving(kinds, RISE / 2), labels(*kinds))
    inverted = attribute_movements(moving(kinds, RISE, wrong=-1), labels(*kinds))
    assert 0 < short < inverted
    strayed = [attribute_movements(moving(kinds, RISE, stray), labels(*kinds)) for stray in (STILL, 2.0, -2.0)]
    assert strayed[0] == pytest.approx(0, abs=1e-6)
    assert strayed[1] == strayed[2] > 0.3


def test_kinds_whose_attributes_nobody_can_say_are_free() -> None:
    unclear = tuple(kind for kind in DISTORTIONS if kind not in CHANGES)
    assert unclear
    assert attribute_movements(torch.randn(4 * len(unclear), len(ATTRIBUTES)), labels(*unclear)) == 0


def test_ladders_of_alterations_say_nothing_of_quality() -> None:
    torch.manual_seed(0)
    vectors: dict[str, Tensor] = {}

    def encode(sentences: Sequence[str]) -> Tensor:
        return torch.stack([vectors.setdefault(s, F.normalize(torch.randn(DIM), dim=0)) for s in sentences])

    objective = PerceptualObjective(encode, 3)
    rated, known, altered = (F.normalize(torch.randn(n, DIM), dim=1) for n in (6, 4, 4))
    scale = torch.tensor(10.0)
    kind = next(iter(ALTERATIONS))
    alone = objective(rated, known, labels("jpeg"), scale, 1)
    beside = objective(rated, torch.cat([known, altered]), labels("jpeg", kind), scale, 1)
    for name in ("mos", "plcc", "levels", "ladder", "distortion", "measured"):
        assert beside[name] == pytest.approx(float(alone[name]), rel=1e-5), name
    assert beside["attributes"] != alone["attributes"]


def test_a_tower_that_is_sure_has_a_finite_loss_in_bf16() -> None:
    """The logit of an expectation of nearly 1 is infinite in bf16."""
    best = F.one_hot(torch.tensor(0), DIM).float()

    def encode(sentences: Sequence[str]) -> Tensor:
        other = F.one_hot(torch.arange(len(sentences)) % (DIM - 1) + 1, DIM).float()
        other[4] = best  # the fifth sentence is the best rating's
        return other

    embedded = best.repeat(6 + 4, 1).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = PerceptualObjective(encode, 3)(embedded[:6], embedded[6:], labels("jpeg"), torch.tensor(100.0), 1)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert embedded.grad is not None
    assert torch.isfinite(embedded.grad).all()
