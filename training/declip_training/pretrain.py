"""Contrastive training of a small tower, where no public CLIP is small enough.

Three kinds of image-text pairs train image and text tower together: photos with a mean opinion score against
sentences of five rating levels and against antonyms (eq. 8), ladders of distortions against sentences that name kind
and strength, and captioned photos against what people wrote. The result is a CLIP in the sense of the paper, on top of
which projectors and prompts are learned as on any other.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from declip_runtime.errors import TrainingError
from declip_runtime.machine import commit

from .arithmetic import CPU, autocast
from .data.batches import BatchLabels, BatchSource
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
    """

    steps: int = 8000
    crops: tuple[tuple[float, int], ...] = ((0.4, 240), (0.4, 288), (0.2, 336))
    lr: float = 8e-4
    trunk_lr: float = 2e-4
    text_lr: float = 4e-4
    weight_decay: float = 0.05
    warmup: int = 200
    ema: float = 0.998
    clip_norm: float = 2.0
    seed: int = 7
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
    device: torch.device = CPU,
    workers: int = 0,
) -> nn.Module:
    """Train ``model`` (an open_clip CLIP) and return its moving average; resumes from ``folder`` if a state is there.

    It is trained on ``device``, where both stay, while ``workers`` processes make batches (0: none but this one). On
    a CPU a run that was killed goes on to the same weights to the bit.

    Appends one JSON line per 50 steps to ``folder/pretrain.jsonl``; a state is saved every ``config.save_every`` steps.
    Raises TrainingError for a loss that is not finite, and for workers where processes cannot fork.
    """
    model.train()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    groups = _parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, fused=True)
    state = folder / "pretrain.safetensors"
    start = load_state(state, {"model": model, "average": average}, optimizer) if state.is_file() else 0
    log = (folder / "pretrain.jsonl").open("a", encoding="utf-8")
    base = [g["lr"] for g in groups]
    kept, new = _floating(average), _floating(model)
    began = time.monotonic()
    sums: dict[str, Tensor] = {}

    @functools.cache  # captions come again and again, and the sentences of distortions in every step
    def tokens(sentence: str) -> Tensor:
        return tokenizer([sentence])[0]

    def encode_text(sentences: Sequence[str]) -> Tensor:
        read = torch.stack([tokens(sentence) for sentence in sentences]).to(device)
        embedded: Tensor = F.normalize(model.encode_text(read).float(), dim=-1)  # type: ignore[operator]
        return embedded

    objective = PerceptualObjective(encode_text, config.seed, source.kinds)
    plan = config.plan()[start:]
    with log, torch.random.fork_rng([device] if device.type == "cuda" else []):
        for (step, _), (pixels, labels) in zip(plan, _batches(source, plan, device, workers), strict=True):
            torch.manual_seed(config.seed * 10**6 + step)  # for dropout: a run that goes on drops what it would have
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * config.rate(step)
            with autocast(device):
                images = to_input(pixels, mean, std, device)
                embedded = F.normalize(model.encode_image(images).float(), dim=-1)  # type: ignore[operator]
                scale = model.logit_scale.exp().clamp(max=100)  # type: ignore[operator]
                rated, ladders, captioned = split_images(embedded, labels)
                losses = objective(rated, ladders, labels, scale, step)
                losses["semantic"] = 0.3 * image_to_text(captioned, encode_text(labels.captions), scale)
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            get_ema_multi_avg_fn(min(config.ema, (1 + step) / (10 + step)))(kept, new, 0)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / 50
            last, saves = step + 1 == config.steps, (step + 1) % config.save_every == 0
            # seldom, since to look at a number is to wait for the GPU
            if (last or saves or (step + 1) % 50 == 0) and not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss.detach())} at step {step}. Remove {state}, and lower the learning rate."
                )
            if (step + 1) % 50 == 0:
                rate = (step + 1 - start) / (time.monotonic() - began)
                line = {
                    "step": step + 1,
                    **{k: round(float(v), 4) for k, v in sums.items()},
                    "scale": round(float(scale.detach()), 2),
                    "steps_per_s": round(rate, 3),
                    "minutes_left": round((config.steps - step - 1) / rate / 60, 1),
                }
                sums = {}
                if evaluate is not None and saves:
                    line.update({k: round(v, 4) for k, v in evaluate(average).items()})
                log.write(json.dumps(line) + "\n")
                log.flush()
            if last or saves:
                save_state(state, {"model": model, "average": average}, optimizer, step + 1)
    return average


def pretrained(model: nn.Module, config: PretrainConfig, path: Path, train: Callable[[nn.Module], nn.Module]) -> str:
    """Leave in ``model`` what ``train(model)``, which is ``pretrain`` with ``config``, makes of it: the average.

    It is kept at ``path``, and read from there if it is there. Returns the commit of the code that made it. Raises
    TrainingError where it cannot be written, or was made with other settings or of another model.
    """
    settings = json.loads(json.dumps(asdict(config)))
    if not path.is_file():
        code = commit()  # of now: who works on it may have changed it when training is done
        state = {k: v.cpu().contiguous() for k, v in train(model).state_dict().items()}
        with replacing(path) as partial:
            save_file(state, partial, metadata={"config": json.dumps(settings), "commit": code})
    try:
        with safe_open(path, "pt") as stored:
            about = stored.metadata() or {}
        made = json.loads(about.get("config", "{}"))
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path} is not of this model: {error}. Remove it, or give another folder.") from error
    if changed := differences(made, settings):
        raise TrainingError(f"{path} was made with other settings: {changed}. Give another folder, or these.")
    return str(about.get("commit", ""))


class _Steps(Dataset[tuple[Tensor, BatchLabels]]):
    """The batches of a plan, as a DataLoader takes them: pixels as a tensor, which no worker has to copy."""

    def __init__(self, source: BatchSource, plan: Sequence[tuple[int, int]]) -> None:
        self._source, self._plan = source, plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> tuple[Tensor, BatchLabels]:
        batch = self._source.batch(*self._plan[index])
        return torch.from_numpy(batch.pixels), batch.labels


def _batches(
    source: BatchSource, plan: Sequence[tuple[int, int]], device: torch.device, workers: int
) -> Iterable[tuple[Tensor, BatchLabels]]:
    """Pixels uint8 [N, S, S, 3] and labels of every (step, crop side), in order.

    Without workers they are made when they are asked for: on a CPU a thread of its own would stall the model's.
    """
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise TrainingError("batches can be made by other processes only where processes fork. Use --workers 0.")
    return DataLoader(
        _Steps(source, plan),
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # banks that were opened before a fork are shared, and sent to a spawned process they are copied
        multiprocessing_context="fork" if workers else None,
    )


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


def _floating(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
