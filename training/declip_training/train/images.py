"""The records' image files: read ahead by threads, in order, and recognised again."""

from __future__ import annotations

import hashlib
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from declip_runtime.errors import ImageError
from declip_training.i2t.records import Record

from .crops import Pixels, RandomCrops

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FileFacts:
    """What a file was when it was read: bytes, time of change in nanoseconds, SHA-256 of its content."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts | None:
        """None where there is no file that can be read."""
        try:
            known = path.stat()
            if not stat.S_ISREG(known.st_mode):  # a pipe would be waited for
                return None
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except (OSError, ValueError):
            return None
        return cls(known.st_size, known.st_mtime_ns, digest.hexdigest())

    def hold(self, path: Path) -> bool | None:
        """Whether ``path`` still has this content (None: there is no such file); unchanged size and time suffice."""
        try:
            known = path.stat()
        except (OSError, ValueError):
            return None
        if (known.st_size, known.st_mtime_ns) == (self.size, self.mtime_ns):
            return True
        now = FileFacts.of(path)
        return None if now is None else now.sha256 == self.sha256


@dataclass(frozen=True)
class Read:
    """Crops of one record's image, or the reason why there are none."""

    crops: list[Pixels]
    facts: FileFacts | None
    reason: str = ""


def another_image(record: Record, path: Path, facts: FileFacts | None) -> str:
    """Why the file at ``path`` is not the image that ``record`` states; empty where it is, or none is stated."""
    if facts is None or not record.image_sha256 or record.image_sha256.lower() == facts.sha256:
        return ""
    return f"{str(path)!r} is not the image of its record: SHA-256 differs."


def read_image(record: Record, folder: Path, crops: RandomCrops, numbers: Iterable[int]) -> Read:
    """Read the image of ``record``, relative to ``folder``, and cut the crops with these numbers."""
    path = folder / record.image
    facts = FileFacts.of(path)
    try:
        image = crops.open(path)
    except ImageError as error:
        return Read([], facts, str(error))
    return Read(crops.of(image, record.id, numbers), facts)


def in_order(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """``map`` by threads that work ahead of the consumer by a few items only."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
