"""What was paid for: every reply of the model, one JSON line each, on the disk before it counts.

Requests that were refused are in it too, so that the next run asks the others first.

The first line says which model, prompt and image size the replies belong to. Whether a reply is acceptable is not
written down but judged anew in each run, so other limits need no new replies.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from declip_runtime.errors import TrainingError
from declip_runtime.locking import lock

_VERSION = 1
_BEGINNING = b'{"journal": '


@dataclass(frozen=True)
class Reply:
    """One answer for the candidate ``id``.

    ``finish`` is why the model stopped (``length``: at its token limit), ``image_sha256`` the file it saw; tokens are 0
    where the endpoint does not tell; ``seconds`` is how long it took.
    """

    id: str
    text: str
    finish: str
    image_sha256: str
    tokens_in: int
    tokens_out: int
    seconds: float


class Journal:
    """An append-only file of replies; ``replies`` holds them by candidate, in the order they came.

    ``refused`` are the ids of candidates for which a request was refused.

    ``settings`` must equal those of the file, where there is one. A last line that a kill cut short is removed and its
    reply asked again: ``cut`` says so. Only one process at a time may write.

    Raises TrainingError for a damaged file, one of other settings, and one that is in use.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.cut = False
        self.replies: dict[str, list[Reply]] = {}
        self.refused: set[str] = set()
        self._lock = threading.Lock()
        self._stream: FileIO = path.open("ab", buffering=0)
        try:
            _claim(self._stream, path)
            self._read(dict(settings))
        except BaseException:
            self._stream.close()
            raise

    def append(self, reply: Reply) -> None:
        """Write a reply to the disk; when this returns it survives a kill. May be called from several threads."""
        with self._lock:
            self._write(asdict(reply))
            self.replies.setdefault(reply.id, []).append(reply)

    def refuse(self, candidate_id: str, reason: str) -> None:
        """Write that a request was refused. May be called from several threads."""
        with self._lock:
            if candidate_id not in self.refused:
                self._write({"id": candidate_id, "refused": reason})
                self.refused.add(candidate_id)

    def close(self) -> None:
        """Let another process have the file."""
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode("ascii") + b"\n"
        end = self._stream.seek(0, os.SEEK_END)
        try:
            if self._stream.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(end)  # half a line would spoil the next one
            raise

    def _read(self, settings: dict[str, Any]) -> None:
        head, replies, self.refused, complete = read_journal(self.path)
        if head is not None:
            require_settings(self.path, head, settings)
        if complete < self.path.stat().st_size:
            self.cut = True
            self._stream.truncate(complete)
        if head is None:
            self._write({"journal": _VERSION, **settings})
            return
        for reply in replies:
            self.replies.setdefault(reply.id, []).append(reply)


def require_settings(path: Path, head: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise TrainingError where the journal with the first line ``head`` was begun with other ``settings``."""
    other = [k for k in settings if settings[k] != head.get(k)]
    if other:
        names = ", ".join(name.replace("_sha256", "").replace("_", " ") for name in other)
        raise TrainingError(
            f"the journal {path} was begun with another {names}. Name another file with --journal, or go back."
        )


class Written(NamedTuple):
    """What a journal holds.

    Its settings (None where there are none yet), the replies, the ids of candidates for which a request was refused,
    and how many bytes are complete lines.
    """

    settings: dict[str, Any] | None
    replies: list[Reply]
    refused: set[str]
    complete: int


def read_journal(path: Path) -> Written:
    """Read all of a journal but a last line that was cut off.

    Raises TrainingError naming the line that is damaged, and for a file that is no journal.
    """
    types: dict[str, Any] = {f.name: str for f in fields(Reply)}
    types |= {"tokens_in": int, "tokens_out": int, "seconds": (int, float)}
    head: dict[str, Any] | None = None
    replies: list[Reply] = []
    refused: set[str] = set()
    complete = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                if number == 1 and line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
                    raise TrainingError(f"{path} is no journal, so it is left alone. Name another file with --journal.")
                break
            try:
                row = json.loads(line)
                if number == 1:
                    head = {"journal": None, **row}
                    if head["journal"] != _VERSION:
                        raise ValueError("it does not begin as a journal of this version does")
                elif isinstance(row, dict) and isinstance(row.get("id"), str) and "refused" in row:
                    refused.add(row["id"])
                elif not isinstance(row, dict) or any(not isinstance(row.get(k), t) for k, t in types.items()):
                    raise ValueError(f"it lacks one of {', '.join(types)}")
                elif row["text"].strip():  # older versions kept empty ones, which answer nothing
                    replies.append(Reply(**{name: row[name] for name in types}))
            except (ValueError, TypeError, RecursionError) as error:
                raise TrainingError(
                    f"line {number} of the journal {path} is damaged: {error}. Repair or remove that line."
                ) from error
            complete += len(line)
    return Written(head, replies, refused, complete)


def _claim(stream: FileIO, path: Path) -> None:
    """Two runs on one journal would pay for every reply twice."""
    try:
        lock(stream)
    except BlockingIOError as error:
        raise TrainingError(f"the journal {path} is in use by another run. Wait for it, or end it.") from error
