"""Writing that leaves the old file or the new one, and says in our words why it could not."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import TrainingError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """TrainingError for what goes wrong while ``path`` is written: a full disk, a missing permission."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}. Free some space or allow writing, and "
            "give the same command again: it goes on where it stopped."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name to write to; it becomes ``path`` when the block ends well, and is removed when it does not."""
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            yield partial
            with partial.open("r+b") as stream:  # Windows flushes only what is open for writing
                os.fsync(stream.fileno())
            partial.chmod(_usual_mode(path))  # safetensors writes for the owner alone
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The permissions of the file that is replaced, else those that a new file gets."""
    if path.is_file():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def allocate_npy(path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
    """Write an .npy of zeros whose space on the disk is taken now: later, a full disk would be a crash of the mapping.

    Raises OSError where there is no room.
    """
    with path.open("wb") as stream:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.flush()
        size = stream.tell() + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote. Raises TrainingError for what it did not write."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Remove its folder and run again.") from error


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Names and values of what differs, for a message; empty where nothing does."""

    def shown(value: Any) -> str:
        text = str(value)
        return f"{text[:12]}..." if len(text) == 64 else text  # a hash

    return "; ".join(
        f"{name} is {shown(wanted.get(name, 'absent'))}, was {shown(stored.get(name, 'absent'))}"
        for name in {**stored, **wanted}
        if stored.get(name) != wanted.get(name)
    )
