"""How strongly a reference image acts, as a whole or block by block, in the form that diffusers' users know.

A number acts in every cross-attention layer. A mapping names parts of the UNet and gives everything else 0, as
``set_ip_adapter_scale`` of diffusers takes it: ``{"up": {"block_0": [0.0, 1.0, 0.0]}}`` is InstantStyle's "style only".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from declip_runtime.errors import UsageError

from .plain_numbers import LARGEST, bounded, shown

Scale: TypeAlias = float | Mapping[str, Any]
"""A number, or a mapping of ``down``, ``mid`` and ``up``, and in them of blocks, to numbers and lists of numbers."""

_PLACE = re.compile(
    r"(?:(?P<part>down|up)_blocks\.(?P<block>\d+)|(?P<mid>mid)_block)\.attentions\.(?P<attention>\d+)\."
)

Blocks = dict[str, list[int]]


def strengths(scale: Scale, layers: Sequence[str], argument: str) -> npt.NDArray[np.float32]:
    """The strength in each of ``layers`` (diffusers' names), float32 [len(layers)].

    A list gives a block's attention layers one value each, a list of one value all of them the same. ``argument``
    names the scale in errors.

    Raises UsageError for what is no scale, and naming the valid ones for blocks that the UNet does not have.
    """
    if not isinstance(scale, Mapping):
        return np.full(len(layers), _number(scale, argument), np.float32)
    parts = _parts(layers)
    values: dict[tuple[str, str, int], float] = {}
    for part, inner in scale.items():
        if part not in parts:
            raise UsageError(f"{argument} names {shown(part)}, which this engine does not have. Use {_valid(parts)}.")
        blocks = parts[part]
        given = inner if isinstance(inner, Mapping) else dict.fromkeys(blocks, inner)
        for block, value in given.items():
            if block not in blocks:
                raise UsageError(
                    f"{argument} names {shown(block)} of {part!r}, where no image acts in this engine."
                    f" Use {_valid(parts)}."
                )
            attentions = blocks[block]
            numbers = _each(value, attentions, f"{argument} for {_written(part, block)}")
            values.update({(part, block, a): number for a, number in zip(attentions, numbers, strict=True)})
    return np.array([values.get(place, 0.0) if (place := _place(layer)) else 0.0 for layer in layers], np.float32)


def plain(scale: Scale) -> Any:
    """A valid scale as JSON writes it: a float, or dicts of floats and lists of floats."""
    if isinstance(scale, Mapping):
        return {str(key): plain(value) for key, value in scale.items()}
    return [float(value) for value in scale] if isinstance(scale, list | tuple) else float(scale)


def _parts(layers: Sequence[str]) -> dict[str, Blocks]:
    """The blocks in which images act, and the numbers of their attention layers: {"down": {"block_1": [0, 1]}}."""
    found: dict[str, Blocks] = {}
    for place in filter(None, map(_place, layers)):
        part, block, attention = place
        numbers = found.setdefault(part, {}).setdefault(block, [])
        if attention not in numbers:
            numbers.append(attention)
    for blocks in found.values():
        for numbers in blocks.values():
            numbers.sort()
    return found


def _place(layer: str) -> tuple[str, str, int] | None:
    """Part, block ('' in the middle) and number of the attention that a layer belongs to."""
    match = _PLACE.match(layer)
    if match is None:
        return None
    block = "" if match["mid"] else f"block_{match['block']}"
    return match["mid"] or match["part"], block, int(match["attention"])


def _each(value: Any, attentions: Sequence[int], where: str) -> list[float]:
    if not isinstance(value, list | tuple):
        return [_number(value, where)] * len(attentions)
    numbers = [_number(item, where) for item in value]
    if len(numbers) not in (1, len(attentions)):
        raise UsageError(
            f"{where} has {len(numbers)} values for {len(attentions)} attention layers. Give one, or one for each."
        )
    return numbers if len(numbers) == len(attentions) else numbers * len(attentions)


def _number(value: Any, where: str) -> float:
    number = bounded(value, -LARGEST)
    if number is None:
        raise UsageError(
            f"{where} is {shown(value)}. Give a number, mostly 0 to 1, or a mapping such as"
            ' {"up": {"block_0": [0.0, 1.0, 0.0]}}.'
        )
    return number


def _written(part: str, block: str) -> str:
    return f"{part}.{block}" if block else part


def _valid(parts: Mapping[str, Blocks]) -> str:
    return ", ".join(_written(part, block) for part in ("down", "mid", "up") for block in sorted(parts.get(part, {})))
