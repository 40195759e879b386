"""A component on any number of rows: cut to what its graph takes at once, padded to the least that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from declip_runtime.signature import BATCH, Arrays, Range, Signature

Component = Callable[[Arrays], Arrays]
"""What runs a component of an engine: its inputs by name to its outputs by name, as its signature says."""


def compute(
    component: Component, signature: Signature, inputs: Arrays, at_most: int | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Run ``component`` on ``inputs`` of any number of rows, at least one, and return its outputs of as many rows.

    No more than ``at_most`` rows go through it at once, and never more than its signature allows. A piece with fewer
    rows than the signature asks for is filled up with its last row, whose results are thrown away.
    """
    batch = signature.free[BATCH]
    largest = batch.maximum if at_most is None else min(max(at_most, batch.minimum), batch.maximum)
    rows = len(next(iter(inputs.values())))
    pieces = []
    for start in range(0, rows, largest):
        piece = {name: array[start : start + largest] for name, array in inputs.items()}
        count = min(largest, rows - start)
        outputs = component({name: _filled(array, batch.minimum) for name, array in piece.items()})
        pieces.append({name: array[:count] for name, array in outputs.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def axis(signature: Signature, tensor: str, number: int) -> Range:
    """The sizes that axis ``number`` of input ``tensor`` may have; a fixed size is a range of one."""
    size = signature.inputs[tensor].shape[number]
    return Range(size, size, size) if isinstance(size, int) else signature.free[size]


def _filled(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    missing = rows - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
