"""Attributes of the bundled engine: their ladders through the frozen tower once, and prompts that follow them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.attributes import ChangeLadders, attribute_loss, selectivity
from declip_training.coop import CoopConfig, learn_context
from declip_training.data.attributes import ATTRIBUTES, CHANGES, MEASURED, Attribute, measure
from declip_training.data.distortions import Pixels, ladder
from declip_training.model.prompts import ScorePrompts
from declip_training.model.text_encoding import encode_texts
from declip_training.model.tower import Tokenizer

SELECTIVE = 0.95
DISTINCT = 2.0  # times as far as any other change: a "noise" that blur moves nearly as far would mislead
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
KINDS = tuple(CHANGES)
COOP = CoopConfig(tokens=20, lr=1e-2, steps=1500, check_every=100)
"""Nearly as many tokens as the text tower takes: of a few the pair of an attribute hardly leaves that of another."""


@dataclass(frozen=True)
class LadderFeatures:
    """Tower features float32 [L, R, D], not normalised; ladder i is of kind ``i % len(KINDS)``; measures [L, 3]."""

    features: Tensor
    measured: Tensor

    def through(self, perceptual: nn.Module) -> ChangeLadders:
        """The same ladders as a projector sees them."""
        with torch.no_grad():
            embedded = F.normalize(perceptual(self.features.flatten(0, 1)), dim=-1).view_as(self.features)
        kinds = np.array([KINDS[i % len(KINDS)] for i in range(len(embedded))])
        measured = dict(zip(MEASURED, self.measured.T, strict=True))
        return ChangeLadders(embedded, kinds, torch.tensor((0.0, *SEVERITIES)), measured)


def ladder_features(
    windows: Sequence[Pixels],
    side: int,
    encode: Callable[[npt.NDArray[np.uint8]], Tensor],
    path: Path,
    report: Callable[[str], None],
) -> LadderFeatures:
    """One ladder of every kind from each of ``windows`` (uint8 [W, W, 3]), scaled to ``side`` and through ``encode``.

    Kept at ``path``, which names the tower, and read from there when it exists.
    """
    if not path.is_file():
        features, measured = [], []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for seed, window in enumerate(windows):

                def climb(kind: str, window: Pixels = window, seed: int = seed) -> npt.NDArray[np.uint8]:
                    return np.stack(ladder(window, side, CHANGES[kind], SEVERITIES, seed, stored=True))

                ladders = list(pool.map(climb, KINDS))
                values = measure(ladders[0][0])
                features += [encode(rungs) for rungs in ladders]
                measured += [[values[name] for name in MEASURED]] * len(KINDS)
                if (seed + 1) % 40 == 0:
                    report(f"ladders of attributes {seed + 1}/{len(windows)}")
        save_file({"features": torch.stack(features), "measured": torch.tensor(measured)}, path)
    return LadderFeatures(**load_file(path))


def learn_attributes(
    clip: nn.Module,
    tokenizer: Tokenizer,
    seen: ChangeLadders,
    unseen: ChangeLadders,
    scale: float,
    log: Callable[[str], Callable[[dict[str, float]], None]],
    config: CoopConfig | None = None,
) -> tuple[tuple[ScorePrompts, ...], dict[str, dict[str, float]]]:
    """Prompts of the attributes that ``unseen`` ladders prove selective: words, or a context learned on ``seen`` ones.

    Also how selective each of ATTRIBUTES is, offered or not, by its words and, where those do not suffice, by what was
    learned. ``log`` gives each attribute's writer of steps.
    """
    offered, card = [], {}
    for attribute in ATTRIBUTES:

        def choice(pairs: Tensor, attribute: Attribute = attribute) -> float:
            return selectivity(unseen, attribute, pairs, scale)["choice"]

        def reached(context: Tensor | None, attribute: Attribute = attribute) -> dict[str, float]:
            pair = encode_texts(clip, tokenizer, attribute.pair, context)
            found = selectivity(unseen, attribute, pair[None], scale)
            return {k: round(v, 4) for k, v in found.items()}

        context = None
        card[f"{attribute.name}, words"] = found = reached(context)
        if not _proven(found):
            loss = attribute_loss(seen, attribute, scale)
            pairs = [attribute.pair]
            context = learn_context(clip, tokenizer, pairs, config or COOP, loss, choice, log(attribute.name))
            card[f"{attribute.name}, learned"] = found = reached(context)
        if _proven(found):
            spec = ScoreSpec(attribute.name, attribute.kind, (attribute.pair,), attribute.description)
            offered.append(ScorePrompts(spec, context))
    return tuple(offered), card


def _proven(reached: dict[str, float]) -> bool:
    return reached["own"] >= SELECTIVE and DISTINCT * reached["strays"] <= reached["moved"]
