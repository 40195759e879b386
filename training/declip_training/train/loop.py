"""The training loop over a feature source: eqs. 3 and 5 to 7, AdamW, and everything a resumed run needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from threading import Barrier
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from declip_runtime.errors import TrainingError
from declip_training.files import replacing
from declip_training.model.projector import Projector
from declip_training.state import load_state, save_state

from .bank import Progress
from .contrast import image_to_text, symmetric
from .run_folder import RunFolder
from .schedule import Rows, epoch_order, learning_rate
from .settings import TrainSettings
from .source import FeatureSource
from .world import World

_LARGEST_SCALE = 100.0  # CLIP's bound on 1 / tau
_LOSSES = ("loss", "perceptual", "semantic", "lr")  # what a step tells

_Side = tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]
_Features = tuple[Tensor, tuple[Tensor, Tensor]]
"""Images; perceptual and semantic texts."""


class Heads(nn.Module):
    """The two projectors and the temperature, which is learned only if it is asked for."""

    def __init__(self, dim: int, settings: TrainSettings) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.perceptual = Projector(dim, settings.latent, settings.activation)
            self.semantic = Projector(dim, settings.latent, settings.activation)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.tau)), requires_grad=settings.learn_tau)

    @property
    def tau(self) -> float:
        """The temperature as it is now."""
        return math.exp(-float(self.log_scale.detach()))


class Best(nn.Module):
    """The lowest validation loss so far and the number of its step; tensors, so that the state keeps them."""

    loss: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loss", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(-1))


@dataclass(frozen=True)
class Reporting:
    """Who is told what, and how often, in steps. None of it decides a weight."""

    progress: Progress = lambda stage, done, total: None
    scalars: Callable[[int, dict[str, float]], None] = lambda step, values: None
    log_every: int = 50
    save_every: int = 500


class Trainer:
    """Trains ``heads`` on rows of ``source``: ``split`` is (those trained on, those that choose the best step).

    ``save`` writes a checkpoint of the heads to a path. In every process of a ``world`` the same; the first writes.
    """

    def __init__(
        self,
        heads: Heads,
        source: FeatureSource,
        split: tuple[Rows, Rows],
        settings: TrainSettings,
        folder: RunFolder,
        save: Callable[[Heads, Any], None],
        world: World,
        device: torch.device,
        reporting: Reporting,
    ) -> None:
        (self._train, self._validation), self._settings = split, settings
        self._heads, self._source = heads.to(device), source
        self._folder, self._save, self._world, self._device = folder, save, world, device
        self._report, self._best = reporting, Best()
        self.steps_per_epoch = steps_per_epoch(len(self._train), settings.batch, world.size)
        self.steps = settings.epochs * self.steps_per_epoch
        self._learned = [p for p in heads.parameters() if p.requires_grad]
        decayed = [*heads.perceptual.parameters(), *heads.semantic.parameters()]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": settings.weight_decay}]
        if settings.learn_tau:
            groups.append({"params": [heads.log_scale], "weight_decay": 0.0})
        self._optimizer = torch.optim.AdamW(groups, settings.lr, fused=True)
        self._dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        self._each = _side_by_side if device.type == "cpu" and world.size == 1 else _in_turn
        self._order: tuple[int, Rows] = (-1, self._train)
        self._judged: _Features | None = None

    def run(self) -> dict[str, float]:
        """Train, or go on, to the last step; returns the last losses and the best step.

        Raises TrainingError for a loss or weights that are not finite, with the step and what is still good.
        """
        with self._world.together():
            step = self._begin()
        began, first = time.monotonic(), step
        losses = self._folder.logged(step, _LOSSES)  # of a run that was killed after its last step
        while step < self.steps:
            losses = self._one(step)
            step += 1
            self._require(math.isfinite(losses["loss"]), step)
            if self._world.leads:
                self._report.progress("training", step, self.steps)
            self._record(step, losses, (step - first) / max(time.monotonic() - began, 1e-9))
        best = {"best_step": float(self._best.step), "best_validation": float(self._best.loss)}
        return {**losses, "tau": self._heads.tau, **best} if self._judged else {**losses, "tau": self._heads.tau}

    def _begin(self) -> int:
        """The number of finished steps; before the first, the validation loss of the heads as they are."""
        if len(self._validation) and self._world.leads:
            self._judged = self._fetch(np.sort(self._validation), None)
        step = self._resume()
        if step == 0:
            self._evaluate(0)
        return step

    def _record(self, step: int, losses: dict[str, float], rate: float) -> None:
        """Log, judge and keep what a step came to, each in its turn."""
        last = step == self.steps
        logs = last or step % self._report.log_every == 0
        judges = last or step % (self.steps_per_epoch * self._settings.evaluate_every) == 0
        keeps = last or step % self._report.save_every == 0
        if not (logs or judges or keeps):
            return
        with self._world.together():
            if judges or keeps:  # the loss is of the weights before the step
                self._require(all(bool(torch.isfinite(p).all()) for p in self._learned), step)
            if not self._world.leads:
                return
            if logs:
                remaining = {"steps_per_s": round(rate, 3), "remaining_s": round((self.steps - step) / rate, 1)}
                self._log(step, {**losses, "tau": self._heads.tau}, remaining)
            if judges:
                self._evaluate(step)
            if keeps:
                self._keep(step)

    def _resume(self) -> int:
        """The number of finished steps, with everything as it was then."""
        step = 0
        if started := self._folder.state.is_file():
            try:
                step = load_state(self._folder.state, {"heads": self._heads, "best": self._best}, self._optimizer)
            except SafetensorError as error:
                raise TrainingError(
                    f"{self._folder.state} is damaged: {error}. Remove it to train from the start."
                ) from error
            for moments in self._optimizer.state.values():
                moments.update({name: value.to(self._device) for name, value in moments.items()})
        if self._world.leads:
            self._folder.forget_after(step if started else -1)
        return step

    def _one(self, step: int) -> dict[str, float]:
        """One step of the optimizer on a global batch."""
        settings, heads = self._settings, self._heads
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self._train, settings.seed, epoch)
        # The loss does not know the order inside a batch; ascending rows lie close together on the disk.
        rows = np.sort(self._order[1][within * settings.batch : (within + 1) * settings.batch])
        share = settings.batch // self._world.size
        first = self._world.rank * share
        with self._world.together() if settings.live else nullcontext():  # whose images may be gone
            images, texts = self._fetch(rows[first : first + share], epoch)
        everyone = [self._world.gather(own) for own in texts]
        sides = self._each(partial(self._side, images, first), (heads.perceptual, heads.semantic), everyone)
        self._optimizer.zero_grad(set_to_none=True)
        for _, gradients in sides:
            for parameter, gradient in gradients:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        losses = [loss for loss, _ in sides]
        parts = torch.stack([losses[0] + losses[1], *losses])
        self._world.add_up([*(p.grad for p in self._learned if p.grad is not None), parts])
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self._learned, settings.clip_norm)
        rate = learning_rate(step, self.steps, settings.lr, settings.schedule, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if settings.learn_tau:
            with torch.no_grad():
                heads.log_scale.clamp_(0, math.log(_LARGEST_SCALE))
        return dict(zip(_LOSSES, [*parts.tolist(), rate], strict=True))

    def _side(self, images: Tensor, first: int, head: Projector, texts: Tensor) -> _Side:
        """The loss of one projector, detached, and the gradient of each of its parameters, and of the temperature."""
        scale = self._heads.log_scale.exp()
        projected = self._project(head, images)
        if self._settings.loss == "symmetric":
            loss = symmetric(projected, texts, scale, self._world)
        else:
            loss = image_to_text(projected, texts, scale, first)
        learned = [*head.parameters(), *([self._heads.log_scale] if self._settings.learn_tau else [])]
        return loss.detach(), list(zip(learned, torch.autograd.grad(loss, learned), strict=True))

    def _project(self, head: Projector, images: Tensor) -> Tensor:
        """Embeddings float32 [b, D], not normalised."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            projected: Tensor = head(images)
        return projected.float()

    def _fetch(self, rows: Rows, epoch: int | None) -> _Features:
        """Images float32 [b, D]; T_p and T_s [b, D] in the dtype of matrix products."""
        images = self._source.images(rows, epoch).to(self._device).float()
        perceptual, semantic = (t.to(self._device, self._dtype) for t in self._source.texts(rows))
        return images, (perceptual, semantic)

    def _evaluate(self, step: int) -> None:
        """Validation loss at the first temperature, and a new best checkpoint where it is the lowest."""
        if not self._world.leads:
            return
        if self._judged is None:  # then the last is the best
            if step == self.steps:
                self._save(self._heads, self._folder.best)
            return
        scale = torch.tensor(1 / self._settings.tau, device=self._device)
        images, texts = self._judged
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for start in range(0, len(images), self._settings.batch):
                part = slice(start, start + self._settings.batch)
                heads = (self._heads.perceptual, self._heads.semantic)
                projected = [self._project(head, images[part]) for head in heads]
                means = torch.stack(
                    [image_to_text(p, own[part], scale) for p, own in zip(projected, texts, strict=True)]
                )
                sums += means.double().cpu() * len(images[part])
        perceptual, semantic = (sums / len(images)).tolist()
        losses = {"validation_perceptual": perceptual, "validation_semantic": semantic}
        losses["validation"] = sum(losses.values())
        self._require(math.isfinite(losses["validation"]), step)
        best = losses["validation"] < float(self._best.loss)
        if best:
            self._best.loss.fill_(losses["validation"])
            self._best.step.fill_(step)
            self._save(self._heads, self._folder.best)
        self._log(step, losses, {"best": best})

    def _keep(self, step: int) -> None:
        """Write the state, from which a killed run goes on."""
        if step == self.steps:
            self._save(self._heads, self._folder.last)
        with replacing(self._folder.state) as partial:
            save_state(partial, {"heads": self._heads, "best": self._best}, self._optimizer, step)

    def _require(self, finite: bool, step: int) -> None:
        if finite:
            return
        good = [str(p) for p in (self._folder.best, self._folder.state) if p.is_file()]
        left = f"Still good: {', '.join(good)}." if good else "Nothing was written yet."
        raise TrainingError(
            f"the loss or a weight is no finite number after step {step:,}. {left} Lower --lr or give --clip-norm 1, "
            "with another folder for -o."
        )

    def _log(self, step: int, values: dict[str, float], more: dict[str, Any]) -> None:
        self._folder.log({"step": step, "epoch": step / self.steps_per_epoch, **values, **more})
        self._report.scalars(step, values)


def _in_turn(
    work: Callable[[Projector, Tensor], _Side], heads: Sequence[Projector], texts: Sequence[Tensor]
) -> list[_Side]:
    """On a GPU, which is busy with one, and where processes exchange something in the middle, in the same order."""
    return [work(head, own) for head, own in zip(heads, texts, strict=True)]


def _side_by_side(
    work: Callable[[Projector, Tensor], _Side], heads: Sequence[Projector], texts: Sequence[Tensor]
) -> list[_Side]:
    """Each in a thread with half of the cores.

    They meet once a step instead of in every operation, where each waits for a core that another program has.
    """
    cores = torch.get_num_threads()
    return _in_turn(work, heads, texts) if cores < 2 else list(_threads(cores).map(work, heads, texts))


@cache
def _threads(cores: int) -> ThreadPoolExecutor:
    """Two threads that compute with half of ``cores`` each. torch keeps that number for every thread apart."""
    shares, started = [cores // 2, cores - cores // 2], Barrier(2)

    def begin() -> None:
        torch.get_num_threads()  # as it sets a thread up when it is first asked for something, to the number of all
        torch.set_num_threads(shares.pop())

    pool = ThreadPoolExecutor(2, initializer=begin)
    list(pool.map(lambda _: started.wait(), range(2)))
    torch.set_num_threads(cores)  # what threads that are started later begin with
    return pool


def steps_per_epoch(records: int, batch: int, processes: int) -> int:
    """Full batches only: the loss depends on how many texts compete. The rest takes its turn in the next order."""
    if batch % processes:
        raise TrainingError(f"a batch of {batch} cannot be shared by {processes} processes. Give a multiple of them.")
    if batch > records:
        largest = records // processes * processes
        smaller = f"Give --batch {largest} or less, or more records." if largest > 1 else "Give more records."
        raise TrainingError(f"a batch of {batch:,} is more than the {records:,} records to train on. {smaller}")
    return records // batch
