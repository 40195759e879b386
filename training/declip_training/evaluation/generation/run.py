"""The whole evaluation: generate what is missing, measure, write the report."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.job_runner import run_jobs
from declip_runtime.generation.jobs import Job
from declip_runtime.generation.progress import Step
from declip_runtime.generation.record import versions
from declip_runtime.machine import commit
from declip_training.files import replacing, writing

from .conditions import CONTROLS, Condition, read_conditions
from .judge import Judge
from .measures import Measures, measure
from .plan import Planned, plan
from .quality import QualityScorer
from .report import Results, to_csv, to_json_lines, to_markdown
from .sheets import contact_sheets
from .summary import Picture, summarise

PICTURES = "pictures"
"""The folder of the pictures, in that of the results."""

_SHEET = re.compile(r"sheet-[0-9]+\.jpg")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and where the results go. Make one with ``read``.

    ``source`` is the name of the file of conditions and ``sha256`` the hash of its content. ``settings`` are arguments
    of ``DPAdapter.generate`` that all pictures have in common, as ``steps`` and ``guidance``. ``draws`` are those of
    the bootstrap; 0 is none.
    """

    conditions: Sequence[Condition]
    source: str
    sha256: str
    folder: Path
    scales: Sequence[float]
    seeds: Sequence[int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1000

    @classmethod
    def read(cls, source: Path, folder: Path, **options: Any) -> Evaluation:
        """Read the conditions from the file ``source``; raises what ``read_conditions`` raises."""
        conditions = read_conditions(source)
        return cls(conditions, source.name, hashlib.sha256(source.read_bytes()).hexdigest(), folder, **options)


@dataclass(frozen=True)
class Finished:
    """The results, how many pictures were ``made`` now, and the names of the ``files`` in the folder of the results."""

    results: Results
    made: int
    files: tuple[str, ...]


def evaluate_generation(
    evaluation: Evaluation,
    adapter: DPAdapter,
    load_judge: Callable[[], Judge],
    scorer: QualityScorer,
    progress: Progress = lambda stage, done, total: None,
) -> Finished:
    """Generate every picture that the folder does not hold yet, measure all, and write the report.

    ``load_judge`` is called when all that can be checked without it has been. The adapter is closed when all is
    generated. Pictures are on disk as soon as they are made, and a picture that fails stops nothing; what is written at
    the end says so.

    Raises before the first step UsageError for what cannot work, what ``load_judge`` raises, and TrainingError for a
    folder that cannot be written and for a judge whose embeddings are no numbers; later TrainingError where nothing
    could be measured, and what the backends raise.
    """
    with writing(evaluation.folder):
        evaluation.folder.mkdir(parents=True, exist_ok=True)
    planned = plan(
        evaluation.conditions,
        adapter.manifest,
        adapter.identity,
        evaluation.folder,
        scales=evaluation.scales,
        seeds=evaluation.seeds,
        settings=evaluation.settings,
    )
    judge = load_judge()
    targets = judge.targets(evaluation.conditions, lambda done, total: progress("embedding conditions", done, total))
    folder = evaluation.folder / PICTURES
    failed, made = _generate(planned, adapter, folder, progress)
    generator = _generator(evaluation, adapter)
    adapter.close()  # it may hold gigabytes that the scorer needs
    there = [one for one in planned if one.file not in failed]
    files = [folder / one.file for one in there]
    embedded = judge.images(files, lambda done, total: progress("embedding pictures", done, total))
    scores, quality = scorer.scores(files, lambda done, total: progress("scoring pictures", done, total))
    measured: dict[str, Measures] = {}
    for one, own, score in zip(there, embedded, scores, strict=True):
        if isinstance(score, float):
            target = targets[one.condition.name]
            measured[one.file] = measure(own.perceptual, own.semantic, target, score)
        else:
            failed[one.file] = str(score)
    pictures = [Picture(one, measured.get(one.file), failed.get(one.file, "")) for one in planned]
    results = Results(
        summarise(pictures, draws=evaluation.draws),
        pictures,
        _notes(evaluation, adapter, judge),
        {**generator, **judge.identity, **quality, **_circumstances(evaluation)},
    )
    return Finished(results, made, _write(results, evaluation.folder))


def _generate(
    planned: Sequence[Planned], adapter: DPAdapter, folder: Path, progress: Progress
) -> tuple[dict[str, str], int]:
    """Why pictures are missing, by file, and how many were made."""
    failed: dict[str, str] = {}
    made = done = 0
    unit = 1

    def on_step(_job: Job, step: Step) -> None:
        nonlocal unit
        unit = step.steps
        progress("generating, steps", done * unit + step.index + 1, len(planned) * unit)

    for outcome in run_jobs([one.job for one in planned], adapter, folder, on_step):
        done += 1
        made += outcome.made
        if outcome.error is not None:
            failed[outcome.job.files[0]] = str(outcome.error)
    return failed, made


def _generator(evaluation: Evaluation, adapter: DPAdapter) -> dict[str, str]:
    manifest = adapter.manifest
    settings = {
        "steps": manifest.steps, "guidance": manifest.guidance, "width": manifest.width, "height": manifest.height,
        **{name: value for name, value in evaluation.settings.items() if value not in (None, "")},
    }  # fmt: skip
    return {
        "generator": manifest.name,
        **{f"generator's {name}": str(value) for name, value in adapter.identity.items()},
        **{name: str(value) for name, value in settings.items()},
        "strengths": ", ".join(f"{scale:g}" for scale in evaluation.scales),
        "seeds": ", ".join(map(str, evaluation.seeds)),
    }


def _circumstances(evaluation: Evaluation) -> dict[str, str]:
    counts = Counter(condition.control for condition in evaluation.conditions)
    return {
        "conditions": f"{evaluation.source}: " + ", ".join(f"{counts[c]} {c}" for c in CONTROLS if counts[c]),
        "conditions, SHA-256": evaluation.sha256,
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit() or "unknown",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }


def _notes(evaluation: Evaluation, adapter: DPAdapter, judge: Judge) -> list[str]:
    found = []
    if adapter.backend == "fake":
        found.append(
            "The pictures were made up by the fake backend, for testing pipelines only: no number means anything."
        )
    if adapter.manifest.provenance.get("projector_sha256") == judge.checkpoint_sha256:
        found.append(
            "The judge has the projectors that steered DP-Adapter, so SC, PC and leak favour it. Judge by another "
            "DeCLIP too."
        )
    texts = [condition.text for condition in evaluation.conditions if condition.text]
    if cut := judge.count_cut(texts):
        found.append(f"{cut} of the texts are longer than the judge's text tower reads; it judged by their beginnings.")
    uses = Counter(path for condition in evaluation.conditions for path in condition.images.values())
    if repeated := sum(number > 1 for number in uses.values()):
        found.append(
            f"{repeated} of the {len(uses)} images stand in several conditions, which are then not independent: the "
            "intervals are too narrow."
        )
    return found


def _write(results: Results, folder: Path) -> tuple[str, ...]:
    sheets = contact_sheets(results.pictures, folder / PICTURES)
    texts = {
        "results.md": to_markdown(results, sheets),
        "results.csv": to_csv(results.rows),
        "pictures.jsonl": to_json_lines(results.pictures),
    }
    files = {name: text.encode() for name, text in texts.items()} | sheets
    for old in folder.glob("sheet-*.jpg"):  # of a run before, with more conditions
        if _SHEET.fullmatch(old.name) and old.name not in files:
            with writing(old):
                old.unlink()
    for name, content in files.items():
        with replacing(folder / name) as partial:
            partial.write_bytes(content)
    return tuple(files)
