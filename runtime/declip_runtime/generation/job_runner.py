"""Running jobs into a folder, and going on where something stopped them.

Every picture's own record names the job that it was made for, so the folder needs no journal: what is there and fits
is not made again, and since pictures appear complete or not at all, nothing is half there. A folder is one run's: two
would make every picture twice.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from declip_runtime.errors import BackendExecutionError, DeclipError, ImageError, UsageError
from declip_runtime.locking import lock

from .adapter import DPAdapter
from .jobs import Job
from .progress import Step
from .record import KEY, read_record, save, stamp

OnJobStep = Callable[[Job, Step], object]

_JOB = "job"
"""Where a picture's record has the key of its job."""
_LOCK = ".declip-lock"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a job: its pictures, how many of them were ``made`` now and how many were ``there`` before, and
    why others are missing, if so."""

    job: Job
    files: tuple[Path, ...]
    made: int
    seconds: float
    error: DeclipError | None = None
    there: int = 0


def run_jobs(
    jobs: Sequence[Job], adapter: DPAdapter, folder: str | Path, on_step: OnJobStep | None = None
) -> Iterator[Outcome]:
    """Run the jobs that ``folder`` does not hold the pictures of yet, and yield the outcome of every job, in order.

    A job that fails is an outcome with its error, and the next one is run. Pictures are written as soon as they are
    made; those of jobs that have changed are replaced.

    Raises UsageError before the first step for a folder that cannot be, that another run has, or that holds other files
    of those names; later where a picture cannot be written. GenerationCancelled and whatever else ``on_step`` raises
    pass through.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{target} cannot be a folder for pictures ({error.strerror}). Choose another.") from error
    with ExitStack() as held:
        held.enter_context(_claim(target))
        missing = [[n for n, file in enumerate(job.files) if not _is_done(target / file, job)] for job in jobs]
        return _run(jobs, missing, adapter, target, on_step, held.pop_all())


def _run(
    jobs: Sequence[Job],
    missing: Sequence[Sequence[int]],
    adapter: DPAdapter,
    folder: Path,
    on_step: OnJobStep | None,
    held: ExitStack,
) -> Iterator[Outcome]:
    with held:
        for job, numbers in zip(jobs, missing, strict=True):
            yield _run_job(job, numbers, adapter, folder, on_step)


def _run_job(job: Job, numbers: Sequence[int], adapter: DPAdapter, folder: Path, on_step: OnJobStep | None) -> Outcome:
    began, made, failure = time.monotonic(), 0, None
    for start in range(0, len(numbers), adapter.batch_size):
        together = numbers[start : start + adapter.batch_size]
        try:
            pictures = adapter.generate(
                **job.arguments,
                seed=[job.seeds[number] for number in together],
                images_per_prompt=len(together),
                on_step=partial(on_step, job) if on_step is not None else None,
            )
        except (UsageError, ImageError, BackendExecutionError) as error:
            failure = error
            break
        for number, picture in zip(together, pictures, strict=True):
            stamp(picture, {**json.loads(picture.info[KEY]), _JOB: job.key})
            save(picture, folder / job.files[number])
            made += 1
    files = tuple(folder / file for file in job.files)
    return Outcome(job, files, made, time.monotonic() - began, failure, len(files) - len(numbers))


def _claim(folder: Path) -> BinaryIO:
    """The open file that keeps other runs out of ``folder`` until it is closed. It stays there: were it removed, a run
    that has just opened it would lock what no later one sees."""
    try:
        held = (folder / _LOCK).open("ab")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}). Choose another folder.") from error
    try:
        lock(held)
    except BlockingIOError as error:
        held.close()
        raise UsageError(f"{folder} is in use by another run. Wait for its end, or choose another folder.") from error
    except OSError as error:  # as of some network file systems
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}). See to it that no other run uses it.", stacklevel=3
        )
    return held


def _is_done(path: Path, job: Job) -> bool:
    """Whether ``path`` is a picture of this job. Raises UsageError where it is none of any job."""
    if not path.exists():
        return False
    try:
        record = read_record(path)
    except (ImageError, UsageError) as error:
        raise UsageError(
            f"{path} is there already and is no picture of a job. Choose another folder or name."
        ) from error
    if _JOB not in record:
        raise UsageError(f"{path} is there already and is no picture of a job. Choose another folder or name.")
    return bool(record[_JOB] == job.key)
