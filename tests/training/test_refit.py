"""The last layer of a tower, fitted once more to what its trunk finds in whole photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from declip_training.bank_fit import BankConfig
from declip_training.data.batches import BatchLabels
from declip_training.data.descriptions import ANTONYMS
from declip_training.features import FeatureBatch
from declip_training.losses import antonym_logit
from declip_training.objective import ATTRIBUTE_WORDS, directions
from declip_training.refit import RatedFeatures, RefitConfig, ReorderConfig, refit, reorder

FOUND, DIM, PHOTOS, RUNGS = 24, 128, 240, 4
CONFIG = RefitConfig(steps=100, rated=128, merged=2, lr=1e-2, check_every=50)
REORDER = ReorderConfig(steps=100, rated=128, merged=2, lr=3e-2, check_every=50)
_sentences: dict[str, Tensor] = {}


def encode(sentences: Sequence[str]) -> Tensor:
    """A text tower that knows nothing: a direction of its own for every sentence."""
    for sentence in sentences:
        generator = torch.Generator().manual_seed(len(_sentences))
        _sentences.setdefault(sentence, F.normalize(torch.randn(DIM, generator=generator), dim=0))
    return torch.stack([_sentences[sentence] for sentence in sentences])


class World:
    """Photos whose first feature is their quality, and ladders along which the second one falls.

    Features are around ``mean``.
    """

    def __init__(self, mean: float = 0.0) -> None:
        torch.manual_seed(3)
        rng = np.random.default_rng(3)
        features = torch.randn(PHOTOS, FOUND)
        mos = torch.sigmoid(features[:, 0]).numpy()
        self.mean = mean
        self.photos = RatedFeatures(
            features + mean, mos, np.arange(PHOTOS) % 3, rng.random((PHOTOS, 3)).astype(np.float32)
        )
        self.unseen = torch.randn(PHOTOS, FOUND) + mean
        self.bank = [self._batch(rng) for _ in range(6)]
        self.head = nn.Linear(FOUND, DIM, bias=False)
        self.pair = encode(ANTONYMS[0])

    def _batch(self, rng: np.random.Generator) -> FeatureBatch:
        severities = np.tile(np.linspace(0, 1, RUNGS, dtype=np.float32), (3, 1))
        ladders = torch.randn(3, 1, FOUND).repeat(1, RUNGS, 1)
        ladders[..., 1] -= 3 * torch.from_numpy(severities)
        captioned = torch.randn(4, FOUND)
        labels = BatchLabels(
            np.full(5, np.nan, np.float32), np.zeros(5, np.int64), np.zeros((5, 3), np.float32), ("jpeg",) * 3,
            severities, tuple("abcdef"), ("jpeg",) * 4, np.zeros(4, np.float32),
        )  # fmt: skip
        found = torch.cat([torch.full((5, FOUND), torch.nan), ladders.flatten(0, 1), captioned])
        return FeatureBatch(found + self.mean, labels)

    def logits(self, head: nn.Module, features: Tensor) -> Tensor:
        with torch.no_grad():
            return antonym_logit(F.normalize(head(features), dim=-1), self.pair, 10.0)

    def agreement(self, head: nn.Module) -> float:
        return float(stats.spearmanr(self.logits(head, self.unseen), self.unseen[:, 0]).statistic)

    def falls(self, head: nn.Module) -> float:
        ladders = self.bank[0].features[5 : 5 + 3 * RUNGS]
        return float((self.logits(head, ladders).view(3, RUNGS).diff() < 0).float().mean())


def test_a_last_layer_learns_opinions_and_ladders_of_a_frozen_trunk() -> None:
    """The bank's own rated photos are not a number, so using one would show."""
    world = World()
    before = {name: tensor.clone() for name, tensor in world.head.state_dict().items()}
    log: list[dict[str, float]] = []

    def evaluate(head: nn.Module) -> dict[str, float]:
        return {"choice": world.agreement(head) + world.falls(head)}

    fitted = refit(world.head, world.photos, world.bank, encode, 10.0, CONFIG, evaluate, log.append)
    assert all(torch.equal(tensor, world.head.state_dict()[name]) for name, tensor in before.items())
    assert world.agreement(fitted) > max(0.8, world.agreement(world.head))
    assert world.falls(fitted) == 1
    assert [line["step"] for line in log] == [0, 50, 100]
    assert evaluate(fitted)["choice"] == max(line["choice"] for line in log)
    again = refit(world.head, world.photos, world.bank, encode, 10.0, CONFIG, evaluate, lambda _: None)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in fitted.state_dict().items())


def test_order_within_the_subsets_is_learned_in_one_direction_that_leaves_attributes_alone() -> None:
    """What tells the subsets apart says nothing of their photos: pooled, it would be most of the order."""
    world = World(mean=2.0)
    with torch.no_grad():
        world.head.weight.neg_()
    assert world.falls(world.head) == 0
    features, subset = world.photos.features, torch.from_numpy(world.photos.subset).float()
    features[:, 2] = subset
    features[:, 3] = 2 + 1e-4 * features[:, 0]  # tempting, and lost in half precision
    mos = (0.3 * world.photos.mos + 0.3 * subset.numpy()).astype(np.float32)
    photos = RatedFeatures(features, mos, world.photos.subset, world.photos.measured)
    log: list[dict[str, float]] = []

    def evaluate(head: nn.Module) -> dict[str, float]:
        return {"choice": world.agreement(head) + world.falls(head)}

    fitted = reorder(world.head, photos, world.bank, encode, 10.0, REORDER, evaluate, log.append)
    assert world.agreement(world.head) < 0 < 0.7 < world.agreement(fitted)
    assert world.falls(fitted) > 0.9
    assert [line["step"] for line in log] == [0, 50, 100]
    assert {"loss_order", "loss_ladder", "loss_kept"} <= log[-1].keys()
    assert evaluate(fitted)["choice"] == max(line["choice"] for line in log)

    change = (fitted.state_dict()["weight"] - world.head.state_dict()["weight"]).detach()
    values = torch.linalg.svdvals(change)
    assert values[1] < 1e-5 * values[0]
    assert (directions(encode(ATTRIBUTE_WORDS)).T @ change).abs().max() < 1e-5 * values[0]
    assert (change @ features.mean(0)).abs().max() < 1e-4 * values[0]
    weights = change.abs().sum(0) * features.std(0)
    assert weights[2] < 0.2 * weights[0]
    halved = (features.half().float() @ change.half().float().T) / (features @ change.T).std()
    assert (halved - features @ change.T / (features @ change.T).std()).abs().max() < 0.02

    again = reorder(world.head, photos, world.bank, encode, 10.0, REORDER, evaluate, lambda _: None)
    assert torch.equal(again.state_dict()["weight"], fitted.state_dict()["weight"])


def test_what_is_kept_dearly_hardly_moves() -> None:
    world = World()

    def moved(kept: float) -> float:
        config = replace(REORDER, kept=kept)
        fitted = reorder(
            world.head, world.photos, world.bank, encode, 10.0, config, lambda head: {"choice": 1 + moves(head)}, log
        )
        return moves(fitted)

    def moves(head: nn.Module) -> float:
        change = world.logits(head, world.photos.features) - world.logits(world.head, world.photos.features)
        return float(change.std())

    def log(line: dict[str, float]) -> None:
        pass

    assert 0 < moved(30.0) < 0.3 * moved(0.03)


@pytest.mark.parametrize(("fit", "config"), [(refit, CONFIG), (reorder, REORDER)])
def test_a_last_layer_that_only_gets_worse_stays(fit: Callable[..., nn.Module], config: BankConfig) -> None:
    world = World()
    choices = iter([1.0, 0.9, 0.8, 0.7])

    def evaluate(head: nn.Module) -> dict[str, float]:
        return {"choice": next(choices)}

    kept = fit(world.head, world.photos, world.bank, encode, 10.0, config, evaluate, lambda _: None)
    assert all(torch.equal(tensor, kept.state_dict()[name]) for name, tensor in world.head.state_dict().items())
