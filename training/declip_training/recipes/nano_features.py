"""What the bundled engine's frozen trunk finds in photos: looked at once, kept, and what a last layer makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from declip_runtime.manifest import Preprocess
from declip_training.data.attributes import MEASURED, measure
from declip_training.data.batches import BatchSource
from declip_training.data.biq2021 import SUBSETS, Rated
from declip_training.data.pixel_bank import load_square
from declip_training.features import FeatureBatch, build_feature_bank, tower_features
from declip_training.files import replacing
from declip_training.recipes.nano_attributes import LadderFeatures, ladder_features
from declip_training.recipes.nano_data import LADDER_SIDES, SIDE, Banks, Sources
from declip_training.recipes.nano_settings import ATTRIBUTE_PHOTOS, BANK_PLAN
from declip_training.recipes.nano_validation import ValidationFeatures, ValidationSplit
from declip_training.refit import RatedFeatures

Pixels = npt.NDArray[np.uint8]


class FrozenTrunk:
    """The tower without its last layer; what it takes long to find is kept in ``folder``, this trunk's own."""

    def __init__(self, trunk: nn.Module, preprocess: Preprocess, folder: Path, report: Callable[[str], None]) -> None:
        self._trunk, self._preprocess, self._folder, self._report = trunk, preprocess, folder, report

    def __call__(self, pixels: Pixels) -> Tensor:
        """Features float32 [N, F] of pictures uint8 [N, S, S, 3]."""
        return tower_features(self._trunk, pixels, self._preprocess.mean, self._preprocess.std)

    def rated(self, photos: Sequence[Rated], pixels: Pixels) -> RatedFeatures:
        """The photos to fit, whole."""
        path = self._folder / "rated.safetensors"
        if not path.is_file():
            self._report("features of whole photos")
            measures = [measure(picture[::2, ::2]) for picture in pixels]
            measured = torch.tensor([[values[name] for name in MEASURED] for values in measures])
            with replacing(path) as partial:
                save_file({"features": self(pixels), "measured": measured}, partial)
        found = load_file(path)
        mos = np.array([p.mos for p in photos], np.float32)
        subset = np.array([SUBSETS.index(p.subset) for p in photos])
        return RatedFeatures(found["features"], mos, subset, found["measured"].numpy())

    def bank(self, source: BatchSource, key: str) -> list[FeatureBatch]:
        """Batches with I&2T pairs: captioned photos (T_s) distorted at random (T_p), rated photos, ladders."""
        return build_feature_bank(
            self._trunk,
            source,
            BANK_PLAN,
            self._folder / "bank.safetensors",
            mean=self._preprocess.mean,
            std=self._preprocess.std,
            key=key,
            progress=lambda done, total: self._report(f"features {done}/{total}") if done % 40 == 0 else None,
        )

    def validation(self, split: ValidationSplit) -> ValidationFeatures:
        """Of the photos and ladders that choices go by."""
        return split.features(self, self._folder / "validation.safetensors")

    def attributes(self, sources: Sources, banks: Banks, seed: int) -> tuple[LadderFeatures, LadderFeatures]:
        """Ladders to learn from (clean photos) and to choose by (Kodak's, by turns from larger and smaller files)."""
        rng = np.random.default_rng(seed)
        picked = [b[i] for b in banks.clean for i in np.sort(rng.choice(len(b), ATTRIBUTE_PHOTOS, replace=False))]
        held = [load_square(photo, side) for photo, side in zip(sources.validation, cycle(LADDER_SIDES), strict=False)]
        learned, chosen = (self._folder / f"{name}.safetensors" for name in ("attributes", "attributes-validation"))
        return (
            ladder_features(picked, SIDE, self, learned, self._report),
            ladder_features(held, SIDE, self, chosen, self._report),
        )


@dataclass(frozen=True)
class Seen:
    """Everything that choices and projectors rest on, as a trunk's features or as the embeddings of a tower."""

    bank: list[FeatureBatch]
    validation: ValidationFeatures
    attributes: tuple[LadderFeatures, LadderFeatures]

    @torch.no_grad()
    def through(self, head: nn.Module) -> Seen:
        """The same after a last layer."""
        learned, chosen = (replace(ladders, features=head(ladders.features)) for ladders in self.attributes)
        return Seen(
            [replace(batch, features=head(batch.features)) for batch in self.bank],
            ValidationFeatures(head(self.validation.rated), head(self.validation.ladders)),
            (learned, chosen),
        )
