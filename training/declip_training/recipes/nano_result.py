"""What the bundled engine's recipe leaves for the export and for the model card."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.machine import commit
from declip_runtime.manifest import Preprocess
from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.model.declip import DeCLIP
from declip_training.model.prompts import PromptSet


@dataclass(frozen=True)
class NanoResult:
    """What the export needs, and the card: SRCC by subset on validation for every head that was compared.

    ``photos`` uint8 [16, S, S, 3] are prepared validation photos, for comparing the engine with torch. ``made_from``
    are hashes of what the tower started from, of tower, projectors and data, and the settings of its training,
    JSON-ready.
    """

    declip: DeCLIP
    preprocess: Preprocess
    scores: tuple[ScoreSpec, ...]
    prompts: PromptSet
    card: dict[str, Any]
    photos: npt.NDArray[np.uint8]
    made_from: dict[str, Any]

    def provenance(self) -> dict[str, Any]:
        """What the engine is to say of its making, JSON-ready; ``commit`` is that of the code that puts it together."""
        prompts = {"prompts_sha256": self.prompts.sha256()}
        return {"recipe": "declip recipe nano", "commit": commit(), **self.made_from, **prompts, "card": self.card}

    def offering(self, names: Sequence[str]) -> NanoResult:
        """The same with the scores of these names only."""
        kept = [k for k, spec in enumerate(self.scores) if spec.name in names]
        declip = copy.deepcopy(self.declip)
        pairs = self.declip.averaging[:, kept].sum(dim=1) > 0
        declip.direction, declip.averaging = declip.direction[pairs], declip.averaging[pairs][:, kept]
        prompts = replace(self.prompts, scores=tuple(self.prompts.scores[k] for k in kept))
        return replace(self, declip=declip, scores=tuple(self.scores[k] for k in kept), prompts=prompts)
