"""Rated photos through a frozen tower, once, in parts that stay: a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from declip_runtime.errors import ImageError, TrainingError
from declip_runtime.images import open_image
from declip_runtime.preprocess import prepare

from .files import replacing, writing
from .train.images import in_order
from .train.towers import Towers

PART = 1024  # photos
_AT_ONCE = 32

Failed = list[tuple[int, str]]


def rated_features(
    folder: Path, towers: Towers, paths: Sequence[Path], threads: int, progress: Callable[[int], None]
) -> tuple[Tensor, Failed]:
    """Tower embeddings float32 [N, D] of the whole photos that can be read, and (place, reason) of the others.

    Kept in ``folder``, a file for every 1,024 photos, which is made anew where photos or tower have changed. Photos
    that could not be read are tried again each time. ``progress`` is told how many photos are done. Raises
    TrainingError where no photo can be read, and for a damaged file.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[Tensor] = []
    failed: Failed = []
    made_by = json.dumps({**towers.identity(), "precision": towers.precision}, sort_keys=True)
    for start in range(0, len(paths), PART):
        part = paths[start : start + PART]
        file = folder / f"{start // PART:05}.safetensors"
        key = _key(made_by, part)
        stored = _stored(file, key)
        if stored is None:
            found = _embed(towers, part, threads, lambda done, before=start: progress(before + done))  # type: ignore[misc]
        else:
            found = _once_more(towers, part, threads, stored)
        if stored is None or len(found[1]) < len(stored[1]):
            with replacing(file) as partial:
                save_file({"features": found[0]}, partial, metadata={"key": key, "failed": json.dumps(found[1])})
        progress(start + len(part))
        rows.append(found[0])
        failed += [(start + place, reason) for place, reason in found[1]]
    if len(failed) == len(paths):
        raise TrainingError(f"none of {len(failed):,} photos can be read. The first: {failed[0][1]}")
    return torch.cat([part for part in rows if len(part)]), failed


def _stored(file: Path, key: str) -> tuple[Tensor, Failed] | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("key") != key:
                return None
            return stored.get_tensor("features"), [(int(i), str(r)) for i, r in json.loads(metadata["failed"])]
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{file} cannot be read: {error}. Remove it and run again.") from error


def _once_more(
    towers: Towers, paths: Sequence[Path], threads: int, stored: tuple[Tensor, Failed]
) -> tuple[Tensor, Failed]:
    """``stored`` with those of its failures that can be read now."""
    features, failures = stored
    if not failures:
        return stored
    places = [place for place, _ in failures]
    again, still = _embed(towers, [paths[place] for place in places], threads, lambda done: None)
    if len(still) == len(failures):
        return stored
    failed = [(places[i], reason) for i, reason in still]
    lacking = {place for place, _ in failed}
    of_old = [i for i in range(len(paths)) if i not in places]
    of_new = [place for place in places if place not in lacking]
    order = np.argsort([*of_old, *of_new])
    return torch.cat([part for part in (features, again) if len(part)])[order], failed


def _embed(
    towers: Towers, paths: Sequence[Path], threads: int, progress: Callable[[int], None]
) -> tuple[Tensor, Failed]:
    rows: list[Tensor] = [torch.zeros(0)]  # where no photo can be read
    failed: Failed = []
    pending: list[npt.NDArray[np.uint8]] = []
    size = towers.preprocess.size

    def read(path: Path) -> npt.NDArray[np.uint8] | ImageError:
        try:
            return prepare(open_image(path, minimum_side=2 * size), towers.preprocess).squeeze(0)
        except ImageError as error:
            return error

    for place, made in enumerate(in_order(read, paths, threads)):
        if isinstance(made, ImageError):
            failed.append((place, str(made)))
        else:
            pending.append(made)
        if len(pending) == _AT_ONCE:
            rows.append(towers.images(pending).cpu())
            pending = []
            progress(place + 1)
    if pending:
        rows.append(towers.images(pending).cpu())
    return torch.cat(rows[1:] or rows), failed


def _key(made_by: str, paths: Sequence[Path]) -> str:
    """What features were made from: the tower's weights and precision, and the photos' paths, sizes and times."""
    digest = hashlib.sha256(made_by.encode())
    for path in paths:
        try:
            stat = path.stat()
            state = f"{stat.st_size}/{stat.st_mtime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{path}:{state};".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
