"""Contrastive training of a small tower, where no public CLIP is small enough.

Three kinds of image-text pairs train image and text tower together: photos with a mean opinion score against
sentences of five rating levels and against antonyms (eq. 8), ladders of distortions against sentences that name kind
and strength, and captioned photos against what people wrote. The result is a CLIP in the sense of the paper, on top of
which projectors and prompts are learned as on any other.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import TrainingError
from declip_runtime.machine import commit

from .data.batches import BatchSource
from .files import differences, replacing
from .losses import image_to_text
from .objective import PerceptualObjective, split_images
from .pixels import to_input
from .state import load_state, save_state

Tokenizer = Callable[[Sequence[str]], Tensor]
TRUNK_LAYERS = ("visual.trunk.stages.", "visual.trunk.conv_head.")


@dataclass(frozen=True)
class PretrainConfig:
    """Schedule of the pre-training. ``crops`` are (share of the steps, crop side) in order.

    ``trunk_lr`` is for the layers of the image tower that ImageNet taught, ``lr`` for its other ones.
    ``accidents`` says whether ladders of them are shown (see ``data.accidents``).
    """

    steps: int = 1250
    crops: tuple[tuple[float, int], ...] = ((0.7, 240), (0.3, 288))
    lr: float = 1e-3
    trunk_lr: float = 2.5e-4
    text_lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 120
    ema: float = 0.998
    clip_norm: float = 2.0
    seed: int = 7
    accidents: bool = False
    save_every: int = 250

    def plan(self) -> list[tuple[int, int]]:
        """(step, crop side) for every step."""
        bounds = np.cumsum([share for share, _ in self.crops]) * self.steps
        return [
            (s, self.crops[min(int(np.searchsorted(bounds, s, "right")), len(self.crops) - 1)][1])
            for s in range(self.steps)
        ]

    def rate(self, step: int) -> float:
        """Learning-rate factor in 0..1: linear warm-up, then a half cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def pretrain(
    model: nn.Module,
    tokenizer: Tokenizer,
    source: BatchSource,
    config: PretrainConfig,
    folder: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> nn.Module:
    """Train ``model`` (an open_clip CLIP) and return its moving average; resumes from ``folder`` if a state is there.

    Appends one JSON line per 50 steps to ``folder/pretrain.jsonl``; a state is saved every ``config.save_every`` steps.
    """
    model.train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    groups = _parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, fused=True)
    state = folder / "pretrain.safetensors"
    start = load_state(state, {"model": model, "average": average}, optimizer) if state.is_file() else 0
    log = (folder / "pretrain.jsonl").open("a", encoding="utf-8")
    base = [g["lr"] for g in groups]
    began = time.monotonic()
    sums: dict[str, float] = {}
    amp = torch.autocast("cpu", torch.bfloat16)

    def encode_text(sentences: Sequence[str]) -> Tensor:
        embedded: Tensor = F.normalize(model.encode_text(tokenizer(list(sentences))).float(), dim=-1)  # type: ignore[operator]
        return embedded

    objective = PerceptualObjective(encode_text, config.seed, source.kinds)
    plan = config.plan()
    with log:
        for step, crop in plan[start:]:
            batch = source.batch(step, crop)  # a thread of its own would stall the two OpenMP threads of the model
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * config.rate(step)
            with amp:
                images = to_input(batch.pixels, mean, std)
                embedded = F.normalize(model.encode_image(images).float(), dim=-1)  # type: ignore[operator]
                scale = model.logit_scale.exp().clamp(max=100)  # type: ignore[operator]
                rated, ladders, captioned = split_images(embedded, batch.labels)
                losses = objective(rated, ladders, batch.labels, scale, step)
                losses["semantic"] = 0.3 * image_to_text(captioned, encode_text(batch.labels.captions), scale)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss.detach())} at step {step}. Remove {state}, and lower the learning rate."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            _update_average(average, model, min(config.ema, (1 + step) / (10 + step)))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / 50
            if (step + 1) % 50 == 0:
                rate = (step + 1 - start) / (time.monotonic() - began)
                line = {
                    "step": step + 1,
                    **{k: round(v, 4) for k, v in sums.items()},
                    "scale": round(float(scale.detach()), 2),
                    "steps_per_s": round(rate, 3),
                    "minutes_left": round((config.steps - step - 1) / rate / 60, 1),
                }
                sums = {}
                if evaluate is not None and (step + 1) % config.save_every == 0:
                    line.update({k: round(v, 4) for k, v in evaluate(average).items()})
                log.write(json.dumps(line) + "\n")
                log.flush()
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save_state(state, {"model": model, "average": average}, optimizer, step + 1)
    return average


def pretrain_in_rounds(
    model: nn.Module,
    rounds: Sequence[PretrainConfig],
    folder: Path,
    train: Callable[[nn.Module, PretrainConfig, Path], nn.Module],
) -> list[str]:
    """Leave in ``model`` what ``rounds`` make of it, each starting at the average of the one before.

    ``train(model, config, its folder)`` trains the model and returns the average, as ``pretrain`` does. Each round's
    result is kept in ``folder/round-N/clip.safetensors``; a round that is there is not run again. Returns the commit of
    the code that made each one. Raises TrainingError where it cannot be written, or was made with other settings or of
    another model.
    """
    commits = []
    for number, config in enumerate(rounds, 1):
        done = folder / f"round-{number}" / "clip.safetensors"
        settings = json.loads(json.dumps(asdict(config)))
        if not done.is_file():
            done.parent.mkdir(parents=True, exist_ok=True)
            code = commit()  # of now: who works on it may have changed it when the round is done
            average = train(model, config, done.parent)
            state = {k: v.contiguous() for k, v in average.state_dict().items()}
            with replacing(done) as partial:
                save_file(state, partial, metadata={"config": json.dumps(settings), "commit": code})
        try:
            with safe_open(done, "pt") as stored:
                about = stored.metadata() or {}
            made = json.loads(about.get("config", "{}"))
            commits.append(about.get("commit", ""))
            model.load_state_dict(load_file(done))
        except (RuntimeError, SafetensorError) as error:
            raise TrainingError(f"{done} is not of this model: {error}. Remove it, or give another folder.") from error
        if changed := differences(made, settings):
            raise TrainingError(f"{done} was made with other settings: {changed}. Give another folder, or these.")
    return commits


def _parameter_groups(model: nn.Module, config: PretrainConfig) -> list[dict[str, Any]]:
    """A learning rate each for trunk, rest of the image tower and text tower; weight decay on matrices only."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = config.text_lr
            if name.startswith("visual."):
                lr = config.trunk_lr if name.startswith(TRUNK_LAYERS) else config.lr
            groups.setdefault((lr, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": members, "lr": lr, "weight_decay": config.weight_decay if matrix else 0.0}
        for (lr, matrix), members in groups.items()
    ]


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)
