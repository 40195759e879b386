"""Jobs from a JSONL file: read and checked as a whole, before anything is generated.

A line is an object with arguments of ``DPAdapter.generate`` and, if its pictures shall be called something else than
its number, ``name``. Paths in it are relative to the file.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from declip_runtime.errors import ImageError, UsageError
from declip_runtime.generator_manifest import GeneratorManifest

from .conditions import open_reference
from .request import OUTPUTS, Request, make_request
from .schedulers import require_possible

ARGUMENTS = tuple(name for name in inspect.signature(make_request).parameters if name != "manifest")
"""What a job may say beside its ``name``."""

_NAME = re.compile(r"[^/\\:*?\"<>|]+")
_LONGEST_NAME = 200
"""Bytes; most file systems take 255, and numbers and an extension are added."""
_DERIVED_SEEDS = 1 << 32
_LISTED = 20
"""Bad lines that are told; who reads on after so many corrects the file first."""


@dataclass(frozen=True, eq=False)
class Job:
    """One valid line.

    ``arguments`` are those of ``generate`` but for seed and number of pictures; ``seeds`` and ``files`` (names in a
    folder) have an entry a picture. ``key`` is a hash over everything that decides the pictures.
    """

    line: int
    name: str
    arguments: Mapping[str, Any]
    seeds: tuple[int, ...]
    files: tuple[str, ...]
    key: str


def read_jobs(
    path: str | Path,
    manifest: GeneratorManifest,
    identity: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> list[Job]:
    """Read and check a whole file of jobs for an adapter; every image that it names is opened once.

    Args:
        path: of the file, UTF-8, one JSON object a line; blank lines are passed over.
        manifest: the adapter's.
        identity: the adapter's: what else decides a picture.
        defaults: arguments for lines that do not state them; paths in them are relative to the working directory.

    A job without a seed gets one that follows from all the rest of it: it stays the same when the file is run again.

    Raises UsageError that lists the bad lines with number and reason, a line each and the first 20 of them,
    BackendUnavailableError where the extra ``generate`` is not installed.
    """
    file = Path(path)
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"the jobs in {file} cannot be read ({reason}). Give a file of JSON lines in UTF-8."
        ) from error
    reader = _Reader(manifest, identity, file.parent, dict(defaults or {}))
    jobs: list[Job] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            jobs.append(reader.job(line, number, f"{number:05}"))  # the same however many lines there will be
        except (UsageError, ImageError) as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = [f"and {len(problems) - _LISTED:,} more"] if len(problems) > _LISTED else []
        listed = "\n".join(problems[:_LISTED] + more)
        raise UsageError(f"{len(problems)} of the lines in {file} are no job that can run. Correct them:\n{listed}")
    if not jobs:
        raise UsageError(f'{file} holds no job. Write one JSON object a line, as {{"prompt": "a red house"}}.')
    return jobs


class _Reader:
    """Makes jobs of lines; knows what earlier lines were called and which images they opened."""

    def __init__(
        self, manifest: GeneratorManifest, identity: Mapping[str, Any], folder: Path, defaults: dict[str, Any]
    ) -> None:
        self._manifest, self._identity, self._folder, self._defaults = manifest, identity, folder, defaults
        self._lines_of_files: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._equal: dict[str, int] = {}
        self._possible: set[tuple[str | None, int]] = set()

    def job(self, text: str, line: int, number: str) -> Job:
        """The job of one line. Raises UsageError and ImageError."""
        stated = _parse(text)
        name = stated.pop("name", None)
        if name is not None:
            _require_name(name)
        unknown = [key for key in stated if key not in ARGUMENTS]
        if unknown:
            raise UsageError(f"{', '.join(map(repr, unknown))} is no argument. Use name, {', '.join(ARGUMENTS)}.")
        arguments = {**self._defaults, **{key: self._located(key, value) for key, value in stated.items()}}
        if not isinstance(arguments.get("prompt", ""), str):
            raise UsageError("a job has one prompt. Write one line for each, or images_per_prompt for more pictures.")
        request = make_request(self._manifest, **arguments)
        self._require_possible(request)
        content = self._content(request)
        seeds = request.seeds if arguments.get("seed") is not None else self._seeds(name, content, len(request.seeds))
        for argument in ("seed", "images_per_prompt"):
            arguments.pop(argument, None)
        files = _files(name or number, len(seeds))
        self._claim(files, line)
        return Job(line, name or number, arguments, seeds, files, _hash([content, seeds]))

    def _require_possible(self, request: Request) -> None:
        asked = request.scheduler, request.steps
        if asked not in self._possible:
            require_possible(self._manifest.scheduler, *asked)
            self._possible.add(asked)

    def _located(self, key: str, value: Any) -> Any:
        """A condition's paths, made relative to the file of jobs; everything else as it is."""
        if key not in OUTPUTS or value is None:
            return value
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) for path in paths):
            raise UsageError(f"{key} is {value!r}. Give the path of an image, or a list of paths.")
        return [str(self._folder / path) for path in paths]

    def _content(self, request: Request) -> list[Any]:
        """Everything but the seeds that decides the pictures of a request, JSON-ready."""
        conditions = [[c.kind, [self._hash_of(image) for image in c.images], c.scale] for c in request.conditions]
        size = [request.width, request.height]
        texts = [request.prompts[0], request.negatives[0]]
        return [dict(self._identity), texts, conditions, request.steps, request.guidance, size, request.scheduler]

    def _hash_of(self, image: Any) -> str:
        known = self._hashes.get(image) if isinstance(image, str) else None
        if known is None:
            known = open_reference(image)[1].sha256
            if isinstance(image, str):
                self._hashes[image] = known
        return known

    def _seeds(self, name: str | None, content: list[Any], count: int) -> tuple[int, ...]:
        """From what the job says, and from how often it was said before, so that equal lines give other pictures."""
        said = _hash([name, content, count])
        before = self._equal[said] = self._equal.get(said, -1) + 1
        first = int(_hash([said, before])[:16], 16) % _DERIVED_SEEDS
        return tuple(range(first, first + count))

    def _claim(self, files: Sequence[str], line: int) -> None:
        for file in files:
            other = self._lines_of_files.setdefault(file.casefold(), line)  # many file systems ignore case
            if other != line:
                raise UsageError(f"it would write {file}, and so does line {other}. Give it another name.")


def _parse(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    def no_number(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not JSON ({error}). Write one object a line.") from error
    if not isinstance(found, dict):
        raise UsageError('it is no object. Write one a line, as {"prompt": "a red house"}.')
    return found


def _require_name(name: Any) -> None:
    fits = isinstance(name, str) and _NAME.fullmatch(name) is not None and name.strip(" .") == name
    if not fits or len(name.encode("utf-8", "replace")) > _LONGEST_NAME or not name.isprintable():
        raise UsageError(
            f"the name {name!r} cannot become a file. Use letters, digits and common signs, none of "
            '/ \\ : * ? " < > | and no more than 200 bytes.'
        )


def _files(name: str, pictures: int) -> tuple[str, ...]:
    if pictures == 1:
        return (f"{name}.png",)
    return tuple(f"{name}-{number:0{len(str(pictures))}}.png" for number in range(1, pictures + 1))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
