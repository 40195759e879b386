"""Scores kept on disk, one line a photo, so that nothing is scored twice and a killed run goes on where it was.

A file belongs to one data set in one folder and one setting: engine.id, backend, device, precision, decode, views and
the version of the preprocessing. Its first line says so; every other line has a photo's name, size and time of change,
and its scores. A photo that was replaced is scored again. Photos that failed are not kept: the next run tries them
again. Only one process at a time writes a file; reading needs no turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from declip_runtime.errors import TrainingError
from declip_runtime.locking import lock

from .datasets import Photo

FORMAT = "declip-scores"
Key = tuple[str, int, int]
Values = tuple[float, ...]


def photo_key(photo: Photo) -> Key:
    """Name, size in bytes and time of change in nanoseconds: what tells a photo from another one.

    Both are -1 for a link that leads nowhere; such a photo fails, and what fails is not kept.
    """
    try:
        found = photo.path.stat()
    except OSError:
        return photo.name, -1, -1
    return photo.name, found.st_size, found.st_mtime_ns


def cache_path(folder: Path, dataset: str, request: Mapping[str, Any], identity: Mapping[str, Any]) -> Path:
    """The file for a data set, a setting and what it came to (``Scorer.identity``): "auto" may mean another backend."""
    return folder / f"{_stem(dataset, request)}-{_digest(identity)[:8]}.jsonl"


def cache_files(folder: Path, dataset: str, request: Mapping[str, Any]) -> list[Path]:
    """The files that are there for a data set and a setting, whatever it came to; the newest first."""
    found = folder.glob(f"{_stem(dataset, request)}-*.jsonl")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _stem(dataset: str, request: Mapping[str, Any]) -> str:
    return f"{dataset}-{_digest(request)[:24]}"


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class ScoreCache:
    """One file of scores. ``identity`` is what the scores were made with (``Scorer.identity``), None in a new file."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was cut off by a kill is dropped.

        Raises TrainingError for a file that is damaged elsewhere or is of another kind.
        """
        self.path = path
        self.identity: Mapping[str, Any] | None = None
        self._names: tuple[str, ...] = ()
        self._scores: dict[Key, Values] = {}
        self._good = 0  # bytes that are whole lines
        self._stream: BinaryIO | None = None
        if path.is_file():
            self._read()

    def get(self, key: Key, names: Sequence[str]) -> Values | None:
        """The scores of a photo in the order of ``names``, or None."""
        return self._scores.get(key) if self._names == tuple(names) else None

    def start(self, identity: Mapping[str, Any], names: Sequence[str]) -> bool:
        """Get ready to add scores made with ``identity``; True where older ones had to go, being of another.

        Raises TrainingError where another process is writing the file.
        """
        with _telling(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+b")
        try:
            _take_turn(self._stream, self.path)
            self._read()  # again: another process may have written since
            known = self.identity is not None
            same = known and dict(self.identity or {}) == dict(identity) and self._names == tuple(names)
            if not same:
                self._scores, self._good = {}, 0
            self.identity, self._names = dict(identity), tuple(names)
            with _telling(self.path):
                self._stream.truncate(self._good)
            if not same:
                self._write({"format": FORMAT, "identity": self.identity, "names": self._names})
        except BaseException:
            self.close()
            raise
        return known and not same

    def add(self, key: Key, values: Iterable[float]) -> None:
        """Keep a photo's scores, on disk before this returns."""
        self._scores[key] = tuple(values)
        self._write([*key, self._scores[key]])

    def close(self) -> None:
        """Finish writing; reading goes on."""
        if self._stream is not None:
            with _telling(self.path):
                self._stream.close()
            self._stream = None

    def _write(self, value: object) -> None:
        if self._stream is None:
            raise ValueError("start() comes before add()")
        with _telling(self.path):
            self._stream.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
            self._stream.flush()

    def _read(self) -> None:
        self.identity, self._names, self._scores, self._good = None, (), {}, 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._take(number, json.loads(line))
                except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
                    raise TrainingError(
                        f"line {number} of {self.path} is damaged. Remove the file, and its photos are scored again."
                    ) from error
                self._good += len(line)

    def _take(self, number: int, line: Any) -> None:
        if number == 1:
            if line["format"] != FORMAT:
                raise ValueError("another kind of file")
            self.identity, self._names = line["identity"], tuple(line["names"])
            return
        name, size, changed, values = line
        if len(values) != len(self._names):
            raise ValueError("scores are missing")
        self._scores[str(name), int(size), int(changed)] = tuple(float(v) for v in values)


def _take_turn(stream: BinaryIO, path: Path) -> None:
    """Keep other evaluations from writing the file."""
    try:
        lock(stream)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be had alone: {error.strerror or error}. If another evaluation is writing it, wait for its "
            "end; else name another folder with --cache. What was scored before is kept."
        ) from error


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Make an OSError of a block that writes ``path`` a TrainingError that says what became of the scores."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. Free some space or name another folder with --cache; "
            "what was scored before is kept."
        ) from error
