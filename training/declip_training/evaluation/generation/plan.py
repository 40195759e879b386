"""Which pictures there have to be: every condition by both methods, at every strength, with every seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from declip_runtime.errors import UsageError
from declip_runtime.generation.jobs import Job, read_jobs
from declip_runtime.generation.request import make_request
from declip_runtime.generation.schedulers import require_possible
from declip_runtime.generator_manifest import GeneratorManifest
from declip_training.files import replacing

from .conditions import Condition

DP, IP = "DP-Adapter", "IP-Adapter"
METHODS = (DP, IP)
JOBS = "jobs.jsonl"
"""The file that lists the pictures, as ``declip generate`` could make them too."""

_SHORT = {DP: "dp", IP: "ip"}


@dataclass(frozen=True, eq=False)
class Planned:
    """One picture that there has to be."""

    condition: Condition
    method: str
    scale: float
    seed: int
    job: Job

    @property
    def file(self) -> str:
        """The picture's name in its folder."""
        return self.job.files[0]


def plan(
    conditions: Sequence[Condition],
    manifest: GeneratorManifest,
    identity: Mapping[str, Any],
    folder: Path,
    *,
    scales: Sequence[float],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> list[Planned]:
    """Every picture of ``conditions``, those of one condition next to each other; their jobs are in ``folder``.

    ``manifest`` and ``identity`` are the adapter's, ``settings`` arguments of ``DPAdapter.generate`` that all pictures
    have in common. A picture is a job of its own, so that more seeds or strengths leave the others as they are.

    Raises UsageError for strengths, seeds and settings that cannot work, for conditions that the engine does not take
    (with their lines), and for an image that cannot be used; BackendUnavailableError where the extra ``generate`` is
    not installed, TrainingError where ``folder`` cannot be written.
    """
    _require_distinct("strength", scales)
    _require_distinct("seed", seeds)
    if wrong := [scale for scale in scales if not 0 <= scale < math.inf]:
        raise UsageError(f"the strength {wrong[0]!r} cannot work. Give numbers of 0 or more, mostly up to 1.")
    request = make_request(manifest, **settings, seed=list(seeds), images_per_prompt=len(seeds))
    require_possible(manifest.scheduler, request.scheduler, request.steps)
    _require_possible(conditions, manifest, settings, scales[0])
    pictures = [
        (condition, method, scale, seed)
        for condition in conditions
        for scale in scales
        for seed in seeds
        for method in METHODS
    ]
    with replacing(folder / JOBS) as partial, partial.open("w", encoding="utf-8") as stream:
        for condition, method, scale, seed in pictures:
            name = f"{condition.name}-{_SHORT[method]}-{scale:g}-seed{seed}"
            job = {"name": name, **settings, **arguments(condition, method, scale), "seed": seed}
            stream.write(json.dumps(job) + "\n")
    jobs = read_jobs(folder / JOBS, manifest, identity)
    return [Planned(*picture, job) for picture, job in zip(pictures, jobs, strict=True)]


def arguments(condition: Condition, method: str, scale: float) -> dict[str, Any]:
    """The arguments of ``DPAdapter.generate`` for a condition, JSON-ready; paths of images are absolute.

    DP-Adapter takes the look of one image and the content of another as conditions of their own. The plain IP-Adapter
    has one condition, which takes everything of all images.
    """
    images: dict[str, str] = {aspect: str(path.absolute()) for aspect, path in condition.images.items()}
    if method == IP:
        return {"prompt": condition.text, "image": list(images.values()), "image_scale": scale}
    return {"prompt": condition.text, **images, **{f"{aspect}_scale": scale for aspect in condition.images}}


def _require_distinct(what: str, values: Sequence[float]) -> None:
    if not values:
        raise UsageError(f"there is no {what}. Give at least one.")
    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"the {what} {value:g} stands there twice. Give each once.")


def _require_possible(
    conditions: Sequence[Condition], manifest: GeneratorManifest, settings: Mapping[str, Any], scale: float
) -> None:
    problems: dict[str, list[int]] = {}
    for condition in conditions:
        for method in METHODS:
            try:
                make_request(manifest, **settings, **arguments(condition, method, scale))
            except UsageError as error:
                lines = problems.setdefault(str(error), [])
                lines += [condition.line] if condition.line not in lines else []
    if problems:
        listed = "\n".join(
            f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}: {reason}"
            for reason, lines in problems.items()
        )
        raise UsageError(f"this engine cannot generate by all of the conditions. Correct or remove them:\n{listed}")
