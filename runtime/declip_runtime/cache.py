"""Compiled models on disk, so that the second start is fast: one file an entry, a size cap, oldest use goes first.

Entries are files with names of our own in a folder of our own, ``compiled`` inside the cache folder; whatever else lies
there is neither counted nor removed. A file is the compiled model and, as its last 32 bytes, the SHA-256 of it, so that
one altered on disk is noticed before anything computes with it. That proves integrity, not origin.

Entries appear and vanish in one step (rename), so any number of processes may share the folder. Reading works on a
read-only file system; what cannot be read is as good as absent, what cannot be written is a CacheWarning, never a
failure.
"""

from __future__ import annotations

import errno
import hashlib
import math
import mmap
import os
import re
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import CacheError, CacheWarning, UsageError
from .sizes import parse_size

DEFAULT_LIMIT = 2 << 30
"""Bytes that all entries together may take, where nothing else is stated."""

LIMIT_VARIABLE = "DECLIP_CACHE_LIMIT"
"""Environment variable with another limit: bytes, or a number with a unit as in 8GB or 500 MiB; 0 keeps nothing."""

_FOLDER = "compiled"
_SUFFIX = ".declip-compiled"
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_ENTRY = re.compile(_NAME.pattern + re.escape(_SUFFIX), re.ASCII)
_WORK = re.compile(r"\.work-[0-9a-f]{32}")  # a file that is being written
_ABANDONED = 3600.0  # seconds after which such a file belongs to a process that died
_DIGEST_SIZE = hashlib.sha256().digest_size
_CHUNK = 1 << 20


@dataclass(frozen=True)
class CacheEntry:
    """One compiled model: its name, size in bytes, and last use in seconds since the epoch."""

    name: str
    size: int
    last_used: float


class Cache:
    """The compiled-model cache at ``location``; None is the platform's place for caches, looked up when used.

    That is $XDG_CACHE_HOME/declip or ~/.cache/declip, on macOS ~/Library/Caches/declip, on Windows
    %LOCALAPPDATA%\\declip\\Cache. ``limit`` is in bytes, 0 keeps nothing; None takes that of $DECLIP_CACHE_LIMIT, else
    ``DEFAULT_LIMIT``. Raises UsageError where the variable says no size.
    """

    def __init__(self, location: str | os.PathLike[str] | None = None, limit: int | None = None) -> None:
        self._location = None if location is None else Path(location)
        self.limit = _stated_limit() if limit is None else limit
        self._used: set[str] = set()  # entries that were got from here, or put

    @property
    def location(self) -> Path:
        """The folder, whether it exists or not. Raises CacheError where the user has no home folder."""
        return self._location or _platform_location()

    def get(self, name: str) -> memoryview | None:
        """Content of an entry, uint8 [size], marked as used now; None where there is none that this user can read.

        The content is mapped from the file, so that processes share its memory; writing into it changes no file. Where
        it does not match its hash, a CacheWarning says so and the entry is removed.
        """
        try:
            path = self._path(name)
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if _is_whole(file) else None
        except (OSError, CacheError):
            return None
        if content is None:
            _warn(
                f"the compiled model {path} was altered on disk. It is compiled anew; check the disk if this repeats."
            )
            with suppress(OSError):  # of another user, or on a read-only file system
                path.unlink()
            return None
        with suppress(OSError):  # as above: then only the order of eviction suffers
            os.utime(path)
        self._used.add(name)
        return memoryview(content)[:-_DIGEST_SIZE]

    def put(self, name: str, expected_size: int, write: Callable[[BinaryIO], object], *, engine: str = "") -> None:
        """Keep what ``write`` writes into a seekable file, about ``expected_size`` bytes, as entry ``name``.

        ``engine`` is what names of the same engine's entries begin with: those of them that were got from this object
        or put into it are in use together, as the models of one generator, and none of them makes room for another.

        Where that cannot be, or is over the limit, a CacheWarning says so and nothing is kept; likewise where ``write``
        raises OSError. Anything else that it raises passes through.
        """
        self._used.discard(name)  # what it replaces counts no more
        if not self.has_room(expected_size, engine):
            return
        try:
            if self._write(self._path(name), expected_size, write, engine):
                self._used.add(name)
            self._evict(engine)
        except (OSError, CacheError) as error:
            _warn(
                f"compiled models cannot be kept: {str(error).rstrip('.')}. Scoring works, but every start compiles"
                " anew; choose another folder with cache_dir=."
            )

    def has_room(self, size: int, engine: str = "") -> bool:
        """Whether an entry of ``size`` bytes would be kept, as far as the limit goes; a CacheWarning tells why not.

        ``engine`` as for ``put``. Without a word where the limit is 0.
        """
        if not self.limit:
            return False
        beside = sum(entry.size for entry in self._in_use(engine))
        if size + beside <= self.limit:
            return True
        more = f" with the {beside / 1e6:.1f} MB of the same engine's other models" * bool(beside)
        _warn(
            f"the compiled model takes {size / 1e6:.1f} MB{more}, more than the {self.limit / 1e6:.1f} MB that the"
            " cache may take together, so that every start compiles anew. Raise the limit with the environment variable"
            f" {LIMIT_VARIABLE}={math.ceil(2 * (size + beside) / 1e6)}MB, or set it to 0 to keep nothing."
        )
        return False

    def list(self) -> tuple[CacheEntry, ...]:
        """All entries, last used first. Raises CacheError where the folder cannot be read."""
        entries = []
        for file in self._files(_ENTRY):
            with suppress(FileNotFoundError):  # removed meanwhile
                stat = file.stat(follow_symlinks=False)
                entries.append(CacheEntry(file.name.removesuffix(_SUFFIX), stat.st_size, stat.st_mtime))
        return tuple(sorted(entries, key=lambda e: e.last_used, reverse=True))

    @property
    def size(self) -> int:
        """Bytes of all entries together. Raises CacheError where the folder cannot be read."""
        return sum(entry.size for entry in self.list())

    def clear(self) -> int:
        """Remove all entries; returns the bytes freed. Raises CacheError where one cannot be removed."""
        freed = 0
        for entry in self.list():
            path = self._path(entry.name)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise CacheError(f"{path} cannot be removed: {error.strerror}. Check its permissions.") from error
            freed += entry.size
        self._remove_abandoned()
        return freed

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an entry")
        return self.location / _FOLDER / f"{name}{_SUFFIX}"

    def _in_use(self, engine: str) -> tuple[CacheEntry, ...]:
        """Entries of an engine that this object knows; none where no engine is named, or the folder cannot be read."""
        known = {name for name in tuple(self._used) if engine and name.startswith(engine)}
        if not known:
            return ()
        with suppress(CacheError):
            return tuple(entry for entry in self.list() if entry.name in known)
        return ()

    def _write(self, path: Path, expected_size: int, write: Callable[[BinaryIO], object], engine: str) -> bool:
        """Write an entry; whether it was kept."""
        # A stated folder is perhaps there to be shared; in the home folder caches are private, as XDG wants it.
        self.location.mkdir(mode=0o777 if self._location else 0o700, parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        if shutil.disk_usage(path.parent).free < 2 * expected_size:
            raise OSError(errno.ENOSPC, "the disk is nearly full", str(path.parent))
        work = path.with_name(f".work-{uuid.uuid4().hex}")
        try:
            with work.open("x+b") as file:
                write(file)
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                digest = _hash(file, size)
                file.seek(size)
                file.write(digest)
            if not size or not self.has_room(size + _DIGEST_SIZE, engine):
                return False
            with suppress(*_IN_USE):  # another process was first; its entry serves as well
                work.replace(path)
            return True
        finally:
            work.unlink(missing_ok=True)

    def _evict(self, engine: str) -> None:
        staying = {entry.name: entry.size for entry in self._in_use(engine)}
        kept = sum(staying.values())
        for entry in self.list():
            if entry.name in staying:
                continue
            kept += entry.size
            if kept > self.limit:
                with suppress(OSError):  # of another user, in use on Windows, or another process was faster
                    self._path(entry.name).unlink()
        self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        for file in self._files(_WORK):
            with suppress(OSError):
                if time.time() - file.stat(follow_symlinks=False).st_mtime > _ABANDONED:
                    Path(file.path).unlink()

    def _files(self, pattern: re.Pattern[str]) -> tuple[os.DirEntry[str], ...]:
        """Plain files of our own whose whole name matches."""
        folder = self.location / _FOLDER
        try:
            with os.scandir(folder) as found:
                return tuple(f for f in found if pattern.fullmatch(f.name) and f.is_file(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise CacheError(f"the cache cannot be read: {error}. Check its permissions.") from error


_IN_USE = (PermissionError,) if sys.platform == "win32" else ()
"""What replacing a file raises that another process has mapped; elsewhere nobody minds."""


def _is_whole(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size - _DIGEST_SIZE
    return size > 0 and _hash(file, size) == file.read(_DIGEST_SIZE)


def _hash(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the next ``size`` bytes. They are read and not mapped: a bad disk is then an OSError, not a SIGBUS."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    while size and (count := file.readinto(buffer[: min(_CHUNK, size)])):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        size -= count
    return digest.digest()


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)


def _stated_limit() -> int:
    stated = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not stated:
        return DEFAULT_LIMIT
    limit = parse_size(stated)
    if limit is None:
        raise UsageError(
            f"{LIMIT_VARIABLE}={stated!r} is no size. Give bytes or a number with a unit, as 8GB or 500MiB; 0 keeps"
            " nothing."
        )
    return limit


def _platform_location() -> Path:
    if sys.platform == "win32" and (stated := os.environ.get("LOCALAPPDATA")):
        return Path(stated) / "declip" / "Cache"
    if sys.platform not in ("win32", "darwin") and (stated := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return Path(stated) / "declip"
    try:
        home = Path.home()
    except RuntimeError as error:  # a user id without an entry in the password file, as in some containers
        raise CacheError(
            "there is no place for compiled models: the user has no home folder. Set HOME, or name a folder with"
            " cache_dir= or --folder."
        ) from error
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "declip" / "Cache"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "declip"
