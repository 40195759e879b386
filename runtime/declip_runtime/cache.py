"""Compiled models on disk, so that the second start is fast: one folder an entry, a size cap, oldest use goes first.

Entries appear and vanish in one step (rename), so any number of processes may share the folder. Reading works on a
read-only file system; what cannot be written is a CacheWarning, never a failure.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import CacheError, CacheWarning

DEFAULT_LIMIT = 2 << 30
"""Bytes that all entries together may take."""

_WORK = ".work-"  # prefix of folders that are being filled or removed
_ABANDONED = 3600.0  # seconds after which such a folder belongs to a process that died


@dataclass(frozen=True)
class CacheEntry:
    """One compiled model: its name, size in bytes, and last use in seconds since the epoch."""

    name: str
    size: int
    last_used: float


class Cache:
    """The compiled-model cache at ``location``; None is the platform's place for caches, looked up when used.

    That is $XDG_CACHE_HOME/declip or ~/.cache/declip, on macOS ~/Library/Caches/declip, on Windows
    %LOCALAPPDATA%\\declip\\Cache. ``limit`` is in bytes; 0 keeps nothing.
    """

    def __init__(self, location: str | os.PathLike[str] | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self._location = None if location is None else Path(location)
        self.limit = limit

    @property
    def location(self) -> Path:
        """The folder, whether it exists or not. Raises OSError where the user has no home folder."""
        return self._location or _platform_location()

    def get(self, name: str) -> Path | None:
        """Folder of an entry, marked as used now; None where there is none."""
        try:
            folder = self.location / name
            found = folder.is_dir()
        except OSError:
            return None
        with suppress(OSError):  # on a read-only file system only the order of eviction suffers
            os.utime(folder)
        return folder if found else None

    @contextmanager
    def fill(self, name: str, expected_size: int) -> Iterator[Path | None]:
        """A folder to write entry ``name`` into; it becomes the entry when the block ends well.

        Yields None where an entry of ``expected_size`` bytes is over the limit, and, with a CacheWarning, where it
        cannot be written; the block then works without a cache.
        """
        work = self._work_folder(expected_size) if expected_size <= self.limit else None
        if work is None:
            yield None
            return
        try:
            yield work
            if any(work.iterdir()):
                with suppress(OSError):  # another process was first; its entry serves as well
                    work.rename(self.location / name)
                self._evict()
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def list(self) -> tuple[CacheEntry, ...]:
        """All entries, last used first."""
        entries = []
        for folder in self._folders():
            with suppress(FileNotFoundError):  # removed meanwhile
                size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                entries.append(CacheEntry(folder.name, size, folder.stat().st_mtime))
        return tuple(sorted(entries, key=lambda e: e.last_used, reverse=True))

    @property
    def size(self) -> int:
        """Bytes of all entries together."""
        return sum(entry.size for entry in self.list())

    def clear(self) -> int:
        """Remove all entries; returns the bytes freed. Raises CacheError where one cannot be removed."""
        freed = 0
        for entry in self.list():
            try:
                self._remove(entry.name)
            except OSError as error:
                raise CacheError(
                    f"{self.location / entry.name} cannot be removed: {error.strerror}. Check its permissions."
                ) from error
            freed += entry.size
        return freed

    def _work_folder(self, expected_size: int) -> Path | None:
        try:
            location = self.location
            work = location / f"{_WORK}{uuid.uuid4().hex}"
            location.mkdir(mode=0o700, parents=True, exist_ok=True)
            if shutil.disk_usage(location).free < 2 * expected_size:
                raise OSError(errno.ENOSPC, "the disk is nearly full", str(location))
            work.mkdir()
        except OSError as error:
            warnings.warn(
                f"compiled models cannot be kept: {error}. Scoring works, but every start compiles anew; choose"
                " another folder with cache_dir=.",
                CacheWarning,
                stacklevel=2,
            )
            return None
        return work

    def _evict(self) -> None:
        kept = 0
        for entry in self.list():
            kept += entry.size
            if kept > self.limit:
                with suppress(OSError):  # in use on Windows, or another process was faster
                    self._remove(entry.name)
        for folder in self.location.glob(f"{_WORK}*"):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(folder)

    def _remove(self, name: str) -> None:
        """Rename, then delete: no process ever sees half an entry."""
        work = self.location / f"{_WORK}{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            (self.location / name).rename(work)
            shutil.rmtree(work)

    def _folders(self) -> tuple[Path, ...]:
        try:
            return tuple(f for f in self.location.iterdir() if f.is_dir() and not f.name.startswith(_WORK))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise CacheError(f"the cache cannot be read: {error}. Check its permissions.") from error


def _platform_location() -> Path:
    try:
        home = Path.home()
    except RuntimeError as error:  # a user id without an entry in the password file, as in some containers
        raise OSError(errno.ENOENT, "the user has no home folder") from error
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "declip" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "declip"
    stated = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(stated) if stated.startswith("/") else home / ".cache") / "declip"
