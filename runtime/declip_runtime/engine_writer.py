"""Writing engine files: streaming, hashed on the way, and visible only when complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from . import container, onnx_head
from .atomic import replacing
from .engine_file import MANIFEST, WEIGHTS, EngineFile, manifest_of
from .errors import DeclipError, UsageError
from .manifest import GRAPH_KINDS, Entry, Manifest, Plan

Content = bytes | Path | Iterable[bytes]
"""What becomes an entry: its bytes, the file that holds them, or pieces of them in order."""

_CHUNK = 1 << 20


def write_engine(path: str | os.PathLike[str], manifest: Manifest, entries: Mapping[str, Content]) -> EngineFile:
    """Write an engine file and open it.

    ``entries`` maps names (lower-case relative paths) to content and must hold ``weights.bin`` and every graph and
    plan of the manifest, whose ``entries`` are filled in here. Content is streamed, so it need not fit in memory. The
    file replaces one at ``path`` in one step when all is written; equal content gives equal bytes.

    Raises UsageError for missing or ill-named entries, for a file of them that cannot be read, and where the disk does
    not take the engine.
    """
    target = Path(path)
    missing = {WEIGHTS, *manifest.graphs.values(), *manifest.files, *(p.entry for p in manifest.plans)} - set(entries)
    if missing or MANIFEST in entries:
        raise UsageError(
            f"an engine needs the entries {sorted(missing)} too, and writes {MANIFEST} itself. Give all but that."
        )
    for name in entries:
        try:
            container.check_name(name)
        except container.LayoutError as error:
            raise UsageError(f"{error}. Use lower-case letters, digits, '.', '_', '-' and '/'.") from error
    with _replacing(target) as file:
        hashed: dict[str, Entry] = {}
        members = []
        for name in sorted(entries, key=lambda n: n != WEIGHTS):  # stable: weights first, then as given
            digest = hashlib.sha256()
            member = container.append(file, name, _chunks(entries[name]), digest.update)
            members.append(member)
            hashed[name] = Entry(member.size, digest.hexdigest())
        text = replace(manifest, entries=hashed).to_json().encode()
        members.append(container.append(file, MANIFEST, [text], lambda _: None))
        container.finish(file, members)
    return EngineFile.open(target)


def add_plans(
    path: str | os.PathLike[str],
    plans: Iterable[tuple[Plan, Content]],
    output: str | os.PathLike[str] | None = None,
) -> EngineFile:
    """Add TensorRT plans to an engine, replacing those of the same entries; ``engine.id`` stays.

    The engine is copied, checked against its hashes on the way, and appears at ``output`` in one step; None is its own
    place. Raises what ``require_room_for_plans`` raises, and EngineError for an engine that cannot be used.
    """
    engine = EngineFile.open(path)
    target = require_room_for_plans(engine, output)
    entries: dict[str, Content] = {name: engine.chunks(name) for name in engine.manifest.entries}
    described = {plan.entry: plan for plan in engine.manifest.plans}
    for plan, content in plans:
        if not plan.entry.startswith("plans/"):
            raise UsageError(f"the plan's entry is {plan.entry!r}. Choose a name that begins with plans/.")
        described.pop(plan.entry, None)  # a new one comes last
        described[plan.entry], entries[plan.entry] = plan, content
    return write_engine(target, replace(engine.manifest, entries={}, plans=tuple(described.values())), entries)


def require_room_for_plans(engine: EngineFile, output: str | os.PathLike[str] | None = None) -> Path:
    """Where the engine with a plan will be: ``output``, or its own place. Asked before a plan is built for minutes.

    Raises UsageError for an engine that was installed with a package, and for a place that is no file's.
    """
    target = engine.path if output is None else Path(output)
    if {"site-packages", "dist-packages"} & set(target.absolute().parts):
        raise UsageError(f"{target} belongs to an installed package. Write a copy with the plan to another place.")
    _require_file_or_nothing(target)
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist. Create it or choose another output.")
    return target


def pack(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> EngineFile:
    """Make an engine of a folder as ``EngineFile.unpack`` writes it, edited or not.

    The folder holds manifest.json, fp32.onnx and other graphs where wanted (fp16.onnx, ...), weights.bin that their
    external data lies in, and the plans that the manifest names. Hashes are made anew, so texts, calibration and
    graphs may have been changed.

    Raises UsageError for a folder that does not hold this, ManifestError, EngineVersionError, EngineCorruptError for
    a graph that is not ONNX.
    """
    source = Path(folder)
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder. Name one as `declip unpack` writes it.")
    if not (source / MANIFEST).is_file():
        raise UsageError(f"{source} must hold {MANIFEST} and graphs. `declip unpack` shows the form.")
    described = _without_hashes(source / MANIFEST)
    names = [described.graph_name(component, kind) for component in described.signatures for kind in GRAPH_KINDS]
    graphs = {name: f"graphs/{name}.onnx" for name in names if (source / f"{name}.onnx").is_file()}
    for component in described.signatures:
        if (name := described.graph_name(component, "fp32")) not in graphs:
            raise UsageError(f"{source} must hold {name}.onnx. `declip unpack` shows the form.")
    manifest = replace(described, graphs=graphs)
    weights = source / WEIGHTS
    entries: dict[str, Content] = {WEIGHTS: weights if weights.is_file() else b""}
    for name, entry in graphs.items():
        head = _read(source / f"{name}.onnx")
        _require_weights(source / f"{name}.onnx", head, weights.stat().st_size if weights.is_file() else 0)
        entries[entry] = head
    for entry in manifest.files:
        if not (source / entry).is_file():
            raise UsageError(f"{source / entry} is missing. `declip unpack` shows the form.")
        entries[entry] = source / entry
    for plan in manifest.plans:
        if not (source / plan.entry).is_file():
            raise UsageError(f"{source / plan.entry} is missing. Put it there or take it out of {MANIFEST}.")
        entries[plan.entry] = source / plan.entry
    return write_engine(path, manifest, entries)


def _without_hashes(path: Path) -> Manifest:
    """The manifest as a description only: what it says of other bytes than those beside it is forgotten."""
    text = _read(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a JSON object. `declip unpack` shows the form.")
    return manifest_of(path, json.dumps({**data, "entries": {}, "engine_id": None}).encode())


def _require_weights(path: Path, head: bytes, size: int) -> None:
    for tensor in onnx_head.tensors(head):
        if tensor.location != WEIGHTS or tensor.offset + tensor.length > size:
            raise UsageError(
                f"tensor {tensor.name!r} of {path} does not lie in the {WEIGHTS} beside it. Save the graph with"
                f" onnx.save(..., save_as_external_data=True, location={WEIGHTS!r})."
            )


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Path):
        yield from _pieces(content)
    else:
        yield from content


def _read(path: Path) -> bytes:
    return b"".join(_pieces(path))


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well, and vanishes otherwise."""
    _require_file_or_nothing(path)
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        if isinstance(error, DeclipError):
            raise
        reason = error.strerror or error
        raise UsageError(f"cannot write {path}: {reason}. Choose another place, or free some space.") from error


def _require_file_or_nothing(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder. Name a file to write.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a pipe, socket or device. Name a file to write.")
