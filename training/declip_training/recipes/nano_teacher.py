"""The teacher of the bundled engine: two frozen networks that know ImageNet, and what people said of other photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from declip_training.arithmetic import CPU
from declip_training.data.biq2021 import Rated
from declip_training.data.pixel_bank import photos_sha256
from declip_training.evaluation.metrics import by_subset
from declip_training.files import replacing
from declip_training.model.imagenet_start import LITE0, LITE2
from declip_training.teacher import cross_fitted, depth_features, kernel, regressed

from .nano_data import Banks
from .nano_settings import OWN_OPINION

TEACHERS = (LITE2, LITE0)


def taught(
    banks: Banks, folder: Path, seed: int, report: Callable[[str], None], device: torch.device = CPU
) -> tuple[list[Rated], dict[str, dict[str, float]]]:
    """The photos to fit, their opinions mixed with what the teacher says of them, and its agreement with people.

    What it says of a photo to fit does not rest on that photo's opinion, and nothing rests on the validation photos.
    ``folder`` keeps what the networks found, computed on ``device``, and what the teacher says.
    """
    splits = banks.splits
    parts = {"fit": (splits.fit, banks.fit), "validation": (splits.validation, banks.validation)}
    where = folder / photos_sha256([photo.path for photos, _ in parts.values() for photo in photos])[:12]
    path = where / "opinions.safetensors"
    if not path.is_file():
        where.mkdir(parents=True, exist_ok=True)
        found = {
            part: [
                depth
                for public in TEACHERS
                for depth in depth_features(
                    public,
                    pixels,
                    where / f"{public.network}-{part}.safetensors",
                    _reported(public.network, report),
                    device,
                )
            ]
            for part, (_, pixels) in parts.items()
        }
        mos = torch.tensor([photo.mos for photo in splits.fit])
        similar = kernel(found["fit"], found["fit"])
        said = {
            "fit": cross_fitted(similar, mos, seed=seed),
            "validation": regressed(similar, mos, kernel(found["fit"], found["validation"]).T.contiguous()),
        }
        with replacing(path) as partial:
            save_file(said, partial)
    said = load_file(path)
    agreement = {part: _agreement(said[part].numpy(), photos) for part, (photos, _) in parts.items()}
    mixed = [
        replace(photo, mos=OWN_OPINION * photo.mos + (1 - OWN_OPINION) * float(opinion))
        for photo, opinion in zip(splits.fit, said["fit"], strict=True)
    ]
    return mixed, agreement


def _agreement(said: npt.NDArray[np.float32], photos: Sequence[Rated]) -> dict[str, float]:
    found = by_subset(said, np.array([p.mos for p in photos]), [p.subset for p in photos])
    return {name: round(value, 4) for name, value in found.items()}


def _reported(network: str, report: Callable[[str], None]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done % 1024 == 0 or done == total:
            report(f"{network}: {done}/{total} photos")

    return progress
