"""What a training run is told: everything here, and nothing else but data and towers, decides the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from declip_runtime.errors import TrainingError
from declip_training.model.projector import LATENT, Activation

Schedule = Literal["constant", "cosine"]
Loss = Literal["image-to-text", "symmetric"]
Precision = Literal["fp32", "bf16"]
_CHOICES = {"schedule": Schedule, "loss": Loss, "activation": Activation, "precision": Precision}


@dataclass(frozen=True)
class TrainSettings:
    """Defaults are the paper's (section 4.1) where it states a value.

    ``batch`` is the global batch, whatever number of processes share it. ``warmup`` counts steps. ``clip_norm`` 0 does
    not clip. ``validation`` is the share of records that is held out, chosen by a hash of ids, those of one image
    together; 0 holds out none. ``crops`` is how many random crops of an image the bank holds; ``crop_side`` is the
    least side of a crop as a share of the picture's shorter side. ``live`` runs the tower in every step on fresh crops
    instead.
    """

    epochs: int = 200
    batch: int = 1024
    lr: float = 1e-5
    weight_decay: float = 5e-2
    schedule: Schedule = "constant"
    warmup: int = 0
    clip_norm: float = 0.0
    loss: Loss = "image-to-text"
    tau: float = 0.07
    learn_tau: bool = False
    latent: int = LATENT
    activation: Activation = "between"
    precision: Precision = "fp32"
    validation: float = 0.02
    evaluate_every: int = 1
    crops: int = 4
    crop_side: float = 0.7
    live: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise TrainingError(
                    f"{name} {getattr(self, name)!r} is unknown. Use one of {', '.join(get_args(kind))}."
                )
        limits = {
            "epochs": (1, 10**6), "batch": (2, 10**6), "lr": (0, 1e38), "weight_decay": (0, 1e38), "warmup": (0, 10**9),
            "clip_norm": (0, 1e38), "tau": (0.01, 100), "latent": (1, 10**6), "validation": (0, 0.9),
            "evaluate_every": (1, 10**6), "crops": (1, 10**4), "crop_side": (0.05, 1), "seed": (0, 2**32 - 1),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:  # NaN fails too
                raise TrainingError(
                    f"{name} {getattr(self, name)} cannot work. Give {_shown(least)} to {_shown(most)}."
                )
        if self.learn_tau and self.tau > 1:
            raise TrainingError(
                f"a tau of {self.tau:g} cannot be learned from, as 1 / tau stays within 1 and 100. Give 1 or less."
            )


def _shown(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
