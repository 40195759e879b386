"""A CoOp run: rated photos through the frozen tower once, a context learned on them, and a prompts file written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import TrainingError
from declip_training.coop import CoopConfig, learn_context, opinion_loss, pair_scores, require_room
from declip_training.evaluation.metrics import plcc, srcc
from declip_training.files import replacing, write_json
from declip_training.model.prompts import LARGEST_SCALE, LearnedOn, PromptSet, ScorePrompts
from declip_training.opinions import Opinions
from declip_training.rated_features import rated_features
from declip_training.train.towers import Towers

Progress = Callable[[str, int, int], None]
_NAMED = 3
PROMPTS, CONTEXT, FEATURES, LOG, REPORT = (
    "prompts.toml", "coop.safetensors", "features", "coop.jsonl", "report.json",
)  # fmt: skip


@dataclass(frozen=True)
class CoopJob:
    """What one run learns and where it writes.

    ``batch`` photos a step; ``plcc`` is the weight of 1 - Pearson's r beside the mean squared error; ``validation`` the
    share of photos that the step is chosen by; ``scale`` replaces the tower's own logit scale; ``skip_unreadable``
    goes on without photos that cannot be read. ``projector_sha256`` is of the projectors in use.
    """

    folder: Path
    prompts: PromptSet
    score: str
    config: CoopConfig
    batch: int = 256
    plcc: float = 0.0
    validation: float = 0.1
    scale: float | None = None
    skip_unreadable: bool = False
    threads: int = 1
    projector_sha256: str = ""

    def __post_init__(self) -> None:
        names = [s.name for s in self.prompts.specs()]
        if self.score not in names:
            raise TrainingError(f"the prompts have no score {self.score!r}. They have: {', '.join(names)}.")
        if not 0 < self.validation < 1:
            raise TrainingError(f"the validation share is {self.validation}. Choose it between 0 and 1, as 0.1.")
        if self.batch < 2:
            raise TrainingError("a batch needs at least 2 photos.")
        if not 0 <= self.plcc < math.inf:
            raise TrainingError(f"the weight of PLCC is {self.plcc}. Choose 0 or more, as 0.5.")
        if self.scale is not None and not 0 < self.scale <= LARGEST_SCALE:
            raise TrainingError(f"the logit scale is {self.scale}. Choose it above 0 and at most {LARGEST_SCALE:g}.")

    def require_room(self, towers: Towers) -> None:
        """Raise ExportError where the text tower has no room for the context: known before any photo is read."""
        (score,) = (s for s in self.prompts.scores if s.spec.name == self.score)
        require_room(towers.clip, towers.tokenizer, score.spec.pairs, self.config)


def run_coop(
    job: CoopJob,
    towers: Towers,
    perceptual: nn.Module,
    opinions: Opinions,
    progress: Progress,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Learn a context for ``job.score`` and write prompts, context, log and report into ``job.folder``.

    The report, which is returned, holds SRCC and PLCC on the photos that were held out, with the words alone and with
    the context. They chose the step: quote the numbers of a data set that was not used here. Raises TrainingError
    for photos that cannot be read (unless they may be skipped), too few of them, and opinions that are all the same;
    ExportError where ``job.require_room`` does. ``warn`` is told where the context is no better than the words alone.
    The folder is to be this run's alone (``sole``).
    """
    at = next(i for i, s in enumerate(job.prompts.scores) if s.spec.name == job.score)
    score, total = job.prompts.scores[at], len(opinions.paths)
    _require_enough(opinions, job.validation)  # before any photo is read
    features, unreadable = rated_features(
        job.folder / FEATURES, towers, opinions.paths, job.threads, lambda done: progress("photos", done, total)
    )
    if unreadable:
        _report_unreadable(unreadable, total, job.skip_unreadable, warn)
        opinions = opinions.without([place for place, _ in unreadable])
        _require_enough(opinions, job.validation)
    with torch.no_grad():
        embedded = F.normalize(perceptual(features), dim=-1)
    held = torch.from_numpy(opinions.held_out(job.validation))
    mos = torch.from_numpy(opinions.mos)
    own = float(towers.clip.logit_scale.detach().exp())  # type: ignore[operator]
    scale = job.scale or job.prompts.logit_scale or own

    def agreement(pairs: Tensor) -> dict[str, float]:
        predicted, target = pair_scores(embedded[held], pairs.cpu(), scale).numpy(), mos[held].numpy()
        if np.ptp(predicted) == 0:
            return {"srcc": 0.0, "plcc": 0.0}
        return {"srcc": srcc(predicted, target), "plcc": plcc(predicted, target)}

    words = PromptSet((ScorePrompts(score.spec),)).encode(towers.clip, towers.tokenizer).pairs
    lines: list[dict[str, float]] = []

    def log(line: dict[str, float]) -> None:
        lines.append(line)
        progress("learning", int(line["step"]), job.config.steps)

    loss = opinion_loss(
        embedded[~held], mos[~held], scale, batch=job.batch, plcc=job.plcc, seed=job.config.seed
    )  # fmt: skip
    context = learn_context(
        towers.clip, towers.tokenizer, score.spec.pairs, job.config,
        lambda pairs, step: loss(pairs.cpu(), step), lambda pairs: agreement(pairs)["srcc"], log,
    ).cpu()  # fmt: skip
    identity = towers.identity()
    learned = replace(
        score, context=context, position=job.config.position,
        learned_on=LearnedOn(identity["clip_sha256"], job.projector_sha256),
    )  # fmt: skip
    scores = (*job.prompts.scores[:at], learned, *job.prompts.scores[at + 1 :])
    chosen = PromptSet(scores, scale)
    settings = {**asdict(job.config), "tokens": context.shape[-2]}  # of the words, where it started from words
    alone = agreement(words)
    reached = agreement(PromptSet((learned,)).encode(towers.clip, towers.tokenizer).pairs)
    if reached["srcc"] <= alone["srcc"]:
        warn(
            "on the photos that were held out the context is no better than the words alone "
            f"(SRCC {reached['srcc']:.4f} and {alone['srcc']:.4f}). Do not use it; more photos, or fewer --tokens, may "
            "do better."
        )
    report: dict[str, Any] = {
        "opinions": opinions.title,
        "photos": len(opinions.paths),
        "held out": int(held.sum()),
        "unreadable": len(unreadable),
        "missing": opinions.missing,
        **identity,
        "projector_sha256": job.projector_sha256,
        "score": job.score,
        "words alone": alone,
        "with context": reached,
        "settings": {**settings, "batch": job.batch, "plcc": job.plcc, "logit_scale": scale},
    }
    with replacing(job.folder / LOG) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    chosen.write(job.folder / PROMPTS, CONTEXT)
    write_json(job.folder / REPORT, report)
    return report


def _require_enough(opinions: Opinions, share: float) -> None:
    chosen = opinions.held_out(share)
    held, rest = opinions.mos[chosen], opinions.mos[~chosen]
    if len(held) < 3 or len(rest) < 2:
        left = f"{len(held)} photos are held out and {len(rest)} are left to learn from"
        raise TrainingError(f"{left}. Give more photos.")
    for what, values in (("held out", held), ("left to learn from", rest)):
        if values.min() == values.max():
            raise TrainingError(
                f"the {len(values)} photos that are {what} all have the same score. Give more photos, or change the "
                "share that is held out."
            )


def _report_unreadable(unreadable: list[tuple[int, str]], total: int, skip: bool, warn: Callable[[str], None]) -> None:
    reasons = " ".join(reason for _, reason in unreadable[:_NAMED])
    counted = f"{len(unreadable):,} of {total:,} photos cannot be read"
    if not skip:
        raise TrainingError(f"{counted}. {reasons} Repair them, or go on without them with --skip-unreadable.")
    warn(f"{counted} and are left out. {reasons}")
