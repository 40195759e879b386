"""A CoOp run: rated photos through the frozen tower once, a context learned on them, and a prompts file written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.errors import ImageError, TrainingError
from declip_runtime.images import open_image
from declip_runtime.preprocess import prepare
from declip_training.coop import CoopConfig, learn_context, opinion_loss, pair_scores
from declip_training.evaluation.metrics import plcc, srcc
from declip_training.files import replacing, write_json, writing
from declip_training.model.prompts import PromptSet, ScorePrompts
from declip_training.opinions import Opinions
from declip_training.train.images import in_order
from declip_training.train.towers import Towers

Progress = Callable[[str, int, int], None]
_AT_ONCE = 32
_NAMED = 3
PROMPTS, CONTEXT, FEATURES, LOG, REPORT = (
    "prompts.toml", "coop.safetensors", "features.safetensors", "coop.jsonl", "report.json",
)  # fmt: skip


@dataclass(frozen=True)
class CoopJob:
    """What one run learns and where it writes.

    ``batch`` photos a step; ``plcc`` is the weight of 1 - Pearson's r beside the mean squared error; ``validation`` the
    share of photos that the step is chosen by; ``scale`` replaces the tower's own logit scale; ``skip_unreadable``
    goes on without photos that cannot be read.
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

    def __post_init__(self) -> None:
        names = [s.name for s in self.prompts.specs()]
        if self.score not in names:
            raise TrainingError(f"the prompts have no score {self.score!r}. They have: {', '.join(names)}.")
        if not 0 < self.validation < 1:
            raise TrainingError(f"the validation share is {self.validation}. Choose it between 0 and 1, as 0.1.")
        if self.batch < 2:
            raise TrainingError("a batch needs at least 2 photos.")


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
    for photos that cannot be read (unless they may be skipped) and too few of them.
    """
    with writing(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    features, unreadable = rated_features(job, towers, opinions, progress)
    if unreadable:
        _report_unreadable(unreadable, len(opinions.paths), job.skip_unreadable, warn)
        opinions = opinions.without([place for place, _ in unreadable])
    with torch.no_grad():
        embedded = F.normalize(perceptual(features), dim=-1)
    held = torch.from_numpy(opinions.held_out(job.validation))
    mos = torch.from_numpy(opinions.mos)
    if held.sum() < 3 or (~held).sum() < 2:
        raise TrainingError(
            f"{int(held.sum())} photos are held out and {int((~held).sum())} are left to learn from. Give more photos."
        )
    at = next(i for i, s in enumerate(job.prompts.scores) if s.spec.name == job.score)
    score = job.prompts.scores[at]
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
    learned = replace(score, context=context, position=job.config.position)
    scores = (*job.prompts.scores[:at], learned, *job.prompts.scores[at + 1 :])
    chosen = PromptSet(scores, scale)
    report: dict[str, Any] = {
        "opinions": opinions.title,
        "photos": len(opinions.paths),
        "held out": int(held.sum()),
        "unreadable": len(unreadable),
        "tower": towers.tower,
        "pretrained": towers.pretrained,
        "score": job.score,
        "words alone": agreement(words),
        "with context": agreement(PromptSet((learned,)).encode(towers.clip, towers.tokenizer).pairs),
        "settings": {**asdict(job.config), "batch": job.batch, "plcc": job.plcc, "logit_scale": scale},
    }
    with replacing(job.folder / LOG) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    chosen.write(job.folder / PROMPTS, CONTEXT)
    write_json(job.folder / REPORT, report)
    return report


def rated_features(
    job: CoopJob, towers: Towers, opinions: Opinions, progress: Progress
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Tower embeddings float32 [N, D] of the whole photos that can be read, and (place, reason) of the others.

    Kept in the run's folder, so that other settings are tried without the tower.
    """
    path = job.folder / FEATURES
    key = _key(towers, opinions)
    if path.is_file():
        try:
            with safe_open(path, "pt") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("key") == key:
                    return stored.get_tensor("features"), [(int(i), str(r)) for i, r in json.loads(metadata["failed"])]
        except (SafetensorError, OSError) as error:
            raise TrainingError(f"{path} cannot be read: {error}. Remove it and run again.") from error
    rows: list[Tensor] = []
    failed: list[tuple[int, str]] = []
    pending: list[npt.NDArray[np.uint8]] = []
    size = towers.preprocess.size

    def read(path: Path) -> npt.NDArray[np.uint8] | ImageError:
        try:
            return prepare(open_image(path, minimum_side=2 * size), towers.preprocess).squeeze(0)
        except ImageError as error:
            return error

    for place, made in enumerate(in_order(read, opinions.paths, job.threads)):
        if isinstance(made, ImageError):
            failed.append((place, str(made)))
        else:
            pending.append(made)
        if len(pending) == _AT_ONCE:
            rows.append(towers.images(pending).cpu())
            pending = []
        progress("photos", place + 1, len(opinions.paths))
    if pending:
        rows.append(towers.images(pending).cpu())
    if not rows:
        raise TrainingError(f"none of {len(failed):,} photos can be read. The first: {failed[0][1]}")
    features = torch.cat(rows)
    with replacing(path) as partial:
        save_file({"features": features}, partial, metadata={"key": key, "failed": json.dumps(failed)})
    return features, failed


def _key(towers: Towers, opinions: Opinions) -> str:
    """What the features were made from: the tower's weights, its precision, and the photos' paths, sizes and times."""
    made_by = {**towers.identity(), "precision": towers.precision}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for path in opinions.paths:
        try:
            stat = path.stat()
            state = f"{stat.st_size}/{stat.st_mtime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{path}:{state};".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _report_unreadable(unreadable: list[tuple[int, str]], total: int, skip: bool, warn: Callable[[str], None]) -> None:
    reasons = " ".join(reason for _, reason in unreadable[:_NAMED])
    counted = f"{len(unreadable):,} of {total:,} photos cannot be read"
    if not skip:
        raise TrainingError(f"{counted}. {reasons} Repair them, or go on without them with --skip-unreadable.")
    warn(f"{counted} and are left out. {reasons}")
