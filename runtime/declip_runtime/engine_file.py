"""The ``.engine`` file: one portable, self-describing, verified file.

A ZIP container (see ``container``) of ``weights.bin``, ``graphs/fp32.onnx`` and others (heads that refer to
weights.bin), ``plans/...`` and ``manifest.json``. Opening is cheap: directory, manifest, sizes. Small entries are
checked against their SHA-256 when read, weights by ``verify``. That proves integrity, not origin.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from . import container, onnx_head
from .errors import (
    EngineCorruptError,
    EngineError,
    EngineNotFoundError,
    EngineTruncatedError,
    NotAnEngineError,
    UsageError,
)
from .generator_manifest import GeneratorManifest
from .manifest import Manifest
from .scorer_manifest import ScorerManifest

MANIFEST = "manifest.json"
WEIGHTS = container.FIRST

_CHUNK = 1 << 20
_MAX_MANIFEST = 64 << 20
_PLAN_MAGIC = (b"ftrt", b"ptrt")
_FETCH_AGAIN = "Copy, download or export it again."


@dataclass(frozen=True, eq=False)
class EngineFile:
    """An engine file that was opened: its manifest is valid and its layout whole; weights are not read yet.

    ``path`` is absolute. Make one with ``EngineFile.open``.
    """

    path: Path
    manifest: Manifest
    _members: dict[str, container.Member]
    _signature: tuple[int, ...]
    _whole: set[str] = field(default_factory=set)  # entries whose hash was found right

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> EngineFile:
        """Open and check everything but the content of the entries.

        Raises EngineNotFoundError, NotAnEngineError (a bare .onnx or .plan included), EngineTruncatedError,
        EngineCorruptError, EngineVersionError for a newer schema, ManifestError.
        """
        if not os.fspath(path):
            raise EngineNotFoundError("the path of the engine is empty. Name an engine file.")
        place = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link to a name users do not know
        with _reading(place):
            _require_file(place)
            with place.open("rb") as file:
                status = os.fstat(file.fileno())
                members = _layout(place, file, status.st_size)
                manifest = _manifest(place, file, members)
        del members[MANIFEST]
        if {m.name: m.size for m in members.values()} != {name: entry.size for name, entry in manifest.entries.items()}:
            raise EngineCorruptError(f"{place} does not hold the entries that its manifest lists. {_FETCH_AGAIN}")
        return cls(place, manifest, members, _signature(status))

    @property
    def id(self) -> str:
        """Hex SHA-256 of what decides a score; the same wherever the file lies and whatever plans it carries."""
        return self.manifest.engine_id

    @property
    def scorer(self) -> ScorerManifest:
        """The manifest of an engine that scores photos. Raises UsageError for one of another kind."""
        if not isinstance(self.manifest, ScorerManifest):
            raise UsageError(f"{self.path} generates pictures and scores none. Use DPAdapter or declip generate.")
        return self.manifest

    @property
    def generator(self) -> GeneratorManifest:
        """The manifest of an engine that generates pictures. Raises UsageError for one of another kind."""
        if not isinstance(self.manifest, GeneratorManifest):
            raise UsageError(f"{self.path} scores photos and generates none. Use Scorer or declip score.")
        return self.manifest

    def read(self, entry: str) -> bytes:
        """All bytes of a small entry, checked against its hash. Raises EngineCorruptError."""
        return b"".join(self.chunks(entry))

    def chunks(self, entry: str) -> Iterator[bytes]:
        """The bytes of an entry in pieces of at most 1 MiB; a wrong hash raises EngineCorruptError at the end."""
        member, digest = self._member(entry), hashlib.sha256()
        with _reading(self.path):
            file = self.path.open("rb")
        with file:
            file.seek(member.offset)
            for start in range(0, member.size, _CHUNK):
                with _reading(self.path):
                    chunk = file.read(min(_CHUNK, member.size - start))
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != self.manifest.entries[entry].sha256:
            raise EngineCorruptError(f"{entry} in {self.path} does not match its hash. {_FETCH_AGAIN}")
        self._whole.add(entry)

    def require_whole(self, entry: str) -> None:
        """Raise EngineCorruptError where an entry does not match its hash. A large one is read for that once only."""
        self.require_unchanged()
        if entry not in self._whole:
            for _ in self.chunks(entry):
                pass

    def offset(self, entry: str) -> int:
        """Absolute offset in bytes of an entry's content in the file; a multiple of 4096."""
        return self._member(entry).offset

    def map(self, entry: str) -> npt.NDArray[np.uint8]:
        """Read-only mapping of an entry, uint8 [size]; its hash is not checked."""
        member = self._member(entry)
        self.require_unchanged()
        if not member.size:  # nothing cannot be mapped
            return np.empty(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", member.offset, (member.size,))

    def graph(self, name: str, location: str, base: int | None = None) -> bytes:
        """The ONNX bytes of graph ``name``, referring to the weights at ``location`` from offset ``base`` on.

        ``base`` None is where the weights begin in this very file. Raises EngineCorruptError for a wrong hash and for
        a tensor that lies outside the weights.
        """
        head, weights = self.read(self.manifest.graphs[name]), self._member(WEIGHTS)
        if onnx_head.IN_MEMORY.encode() in head:  # somebody else's memory, as far as this file can know
            raise EngineCorruptError(f"graph {name!r} of {self.path} refers to addresses in memory. {_FETCH_AGAIN}")
        for tensor in onnx_head.tensors(head):
            if tensor.location != WEIGHTS or tensor.offset + tensor.length > weights.size:
                raise EngineCorruptError(
                    f"tensor {tensor.name!r} lies outside {WEIGHTS} in {self.path}. Export or pack the engine again."
                )
        return onnx_head.relocate(head, location, weights.offset if base is None else base)

    def verify(self) -> None:
        """Check every hash, weights included. Raises EngineCorruptError naming the entry."""
        self.require_unchanged()
        for entry in self.manifest.entries:
            for _ in self.chunks(entry):
                pass

    def require_unchanged(self) -> None:
        """Raise EngineCorruptError where the file at ``path`` is no longer the one that was opened.

        Vendor libraries open the path themselves; a file replaced in between would give them other weights.
        """
        try:
            unchanged = _signature(self.path.stat()) == self._signature
        except OSError as error:
            raise EngineNotFoundError(f"the engine at {self.path} is gone. Open it again.") from error
        if not unchanged:
            raise EngineCorruptError(f"{self.path} was replaced while it was in use. Open it again.")

    def unpack(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the graphs (``fp32.onnx``, ...), weights.bin beside them, raw plans and manifest.json into ``folder``.

        The graphs give raw scores, without calibration. Every hash is checked; the folder appears when all is written.
        Raises UsageError where the folder holds something already, EngineCorruptError.
        """
        target = Path(folder)
        exists = target.exists()
        if exists and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} exists and is not an empty folder. Choose another place.")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = (target if exists else target.parent) / f".declip-{uuid.uuid4().hex}"
        work.mkdir()
        try:
            graphs = {entry: f"{name}.onnx" for name, entry in self.manifest.graphs.items()}
            names = {entry: graphs.get(entry, entry) for entry in self.manifest.entries}
            if len({*names.values(), MANIFEST}) <= len(names):
                raise EngineCorruptError(f"two entries of {self.path} would be one file. {_FETCH_AGAIN}")
            for entry, name in names.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                with (work / name).open("xb") as out:
                    out.writelines(self.chunks(entry))
            (work / MANIFEST).write_text(self.manifest.to_json(), encoding="utf-8")
            if exists:  # it may be somebody's working directory or a mount: fill it, replace it not
                for child in work.iterdir():
                    child.rename(target / child.name)
                work.rmdir()
            else:
                work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        return [target / name for name in (*names.values(), MANIFEST)]

    def _member(self, entry: str) -> container.Member:
        try:
            return self._members[entry]
        except KeyError:
            raise EngineError(
                f"{self.path} has no entry {entry!r}; it has {', '.join(self._members)}. Name one of them."
            ) from None


def bundled_engine() -> Path:
    """Path of the engine that comes with this package. Raises EngineNotFoundError where it was left out."""
    path = Path(__file__).with_name("models") / "declip-nano.engine"
    if not path.is_file():
        raise EngineNotFoundError(f"the bundled engine is missing at {path}. Run: pip install -U declip-sdk")
    return path


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Make what the system says while ``path`` is read an EngineError with the path and what to do."""
    try:
        yield
    except EngineError:  # EngineNotFoundError is a FileNotFoundError too
        raise
    except FileNotFoundError as error:
        raise EngineNotFoundError(f"there is no engine at {path}. Check the path.") from error
    except OSError as error:
        reason = error.strerror or error
        raise EngineError(f"{path} cannot be read: {reason}. Check the path and its permissions.") from error


def _require_file(path: Path) -> None:
    """Opening a pipe would wait for its writer and opening a device may do anything: look before."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise NotAnEngineError(f"{path} is a folder. Make an engine of it with: declip pack {path} -o x.engine")
    if not stat.S_ISREG(mode):
        raise NotAnEngineError(f"{path} is a pipe, socket or device, not a file. Copy the engine to a file first.")


def _layout(path: Path, file: BinaryIO, size: int) -> dict[str, container.Member]:
    head = file.read(64)
    if not container.looks_like_container(head):
        raise NotAnEngineError(_what_it_is(path, head))
    try:
        return {m.name: m for m in container.read(file, size)}
    except container.TruncatedError as error:
        raise EngineTruncatedError(
            f"{path} ends too early, as after an interrupted copy, or goes on behind its end. {_FETCH_AGAIN}"
        ) from error
    except container.LayoutError as error:
        raise EngineCorruptError(f"{path} is damaged: {error}. {_FETCH_AGAIN}") from error


def _what_it_is(path: Path, head: bytes) -> str:
    pack = "Put it into a folder with a manifest.json (`declip unpack` shows the form) and run: declip pack FOLDER"
    if path.suffix.lower() in (".plan", ".trt") or head.startswith(_PLAN_MAGIC):
        return f"{path} is a bare TensorRT plan, which does not say what its scores mean. {pack} -o x.engine"
    if path.suffix.lower() == ".onnx":
        return f"{path} is a bare ONNX graph, which does not say what its scores mean. {pack} -o x.engine"
    if head.startswith(b"PK\x03\x04"):
        return f"{path} is an archive, but not written as an engine. Unzip it and run: declip pack FOLDER -o x.engine"
    return f"{path} is not an engine file. Make one with `declip export` or `declip pack`."


def _manifest(path: Path, file: BinaryIO, members: dict[str, container.Member]) -> Manifest:
    member = members.get(MANIFEST)
    if member is None or member.size > _MAX_MANIFEST:
        raise NotAnEngineError(f"{path} has no {MANIFEST} of a sensible size. Make an engine with: declip pack")
    file.seek(member.offset)
    text = file.read(member.size)
    if zlib.crc32(text) != member.crc:
        raise EngineCorruptError(f"{MANIFEST} in {path} is damaged. {_FETCH_AGAIN}")
    return manifest_of(path, text)


def manifest_of(path: Path, text: bytes) -> Manifest:
    """Parse the manifest that was read from ``path``, which every error then names.

    Raises what ``Manifest.from_json`` does.
    """
    try:
        return Manifest.from_json(text)
    except EngineError as error:
        raise type(error)(f"{path}: {error}") from error
