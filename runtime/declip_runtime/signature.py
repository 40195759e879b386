"""What a graph takes and gives: names, types and shapes, of which some sizes are free."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BackendExecutionError, InvalidArrayError
from .typed_fields import Typed, require

_SIZE = re.compile(r"(?:[1-9][0-9]{0,3}\*)?[a-z][a-z_]*", re.ASCII)

BATCH = "batch"
"""The free dimension that is the first of every input and output."""

Array = npt.NDArray[Any]

Arrays = Mapping[str, Array]
"""Inputs or outputs of a graph by name."""

Sizes = Mapping[str, int]
"""Free dimensions and the sizes that they have in one call."""

LARGEST = 1 << 16
"""The largest size that an axis may have or range to, far above what models have."""

_MOST_AT_LEAST = 1 << 28  # elements of a tensor whose free dimensions have their smallest sizes

SizesKey = tuple[tuple[str, int], ...]


def key_of(sizes: Sizes) -> SizesKey:
    """The sizes as a key of a dictionary."""
    return tuple(sorted(sizes.items()))


class Range(NamedTuple):
    """Sizes of a free dimension: the smallest and largest that a plan takes, and the one that it is tuned for."""

    minimum: int
    optimum: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.minimum}..{self.maximum}, tuned for {self.optimum}"


@dataclass(frozen=True)
class TensorSpec(Typed):
    """Type and shape of an input or output, ``batch`` first; a name is a free size, "8*name" eight times that."""

    dtype: Literal["uint8", "int64", "float32"]
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.shape[:1] == (BATCH,), f"the first axis of every tensor is {BATCH!r}, not of {list(self.shape)}")
        sizes = [size for size in self.shape if isinstance(size, int)]
        require(min(sizes, default=1) >= 1, f"the shape {list(self.shape)} has a size below 1")
        require(max(sizes, default=1) <= LARGEST, f"the shape {list(self.shape)} has a size above {LARGEST}")
        texts = [size for size in self.shape if isinstance(size, str)]
        require(
            all(_SIZE.fullmatch(size) for size in texts), f"the shape {list(self.shape)} has a size of no known form"
        )

    def sized(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape with these sizes of the free dimensions."""
        return tuple(_times(size) * sizes[_name(size)] if isinstance(size, str) else size for size in self.shape)

    @property
    def free(self) -> frozenset[str]:
        """The names of the free dimensions."""
        return frozenset(_name(size) for size in self.shape if isinstance(size, str))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature(Typed):
    """Inputs and outputs of a graph by name, and the range of every free dimension, which plans are built for.

    Only outputs have multiples of a free dimension: an input's own axes say what size it has.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    free: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.inputs and self.outputs), "a graph has no input or no output")
        named = frozenset().union(*(spec.free for spec in self.inputs.values()))
        given = frozenset().union(*(spec.free for spec in self.outputs.values()))
        require(named == set(self.free), f"the free dimensions {sorted(named)} have the ranges {sorted(self.free)}")
        require(given <= named, f"outputs have free dimensions that no input has: {sorted(given - named)}")
        for name, (low, best, high) in self.free.items():
            require(1 <= low <= best <= high <= LARGEST, f"dimension {name!r} has the range {[low, best, high]}")
        for name, spec in self.inputs.items():
            plain = spec.free == {size for size in spec.shape if isinstance(size, str)}
            require(plain, f"the input {name!r} has a multiple of a free dimension, {spec}")
        smallest = {name: low for name, (low, _, _) in self.free.items()}
        for name, spec in (*self.inputs.items(), *self.outputs.items()):
            few = math.prod(spec.sized(smallest)) <= _MOST_AT_LEAST
            require(few, f"{name!r} has more than {_MOST_AT_LEAST} values in the smallest sizes of {spec}")

    @property
    def ranges(self) -> str:
        """A short name of the ranges of all free dimensions: what was made for other ranges has another."""
        text = ",".join(f"{name}={'-'.join(map(str, sizes))}" for name, sizes in sorted(self.free.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def narrowed(self, ranges: Mapping[str, Range]) -> Signature:
        """The same with these ranges of the free dimensions named."""
        return replace(self, free={**self.free, **ranges})

    def sizes(self, inputs: Arrays) -> dict[str, int]:
        """The size of every free dimension in ``inputs``.

        Raises InvalidArrayError for a missing or unknown input, a wrong type or shape, and sizes that contradict each
        other.
        """
        if set(inputs) != set(self.inputs):
            raise InvalidArrayError(f"this graph takes {_listed(self.inputs)}; given are {_listed(inputs)}.")
        sizes: dict[str, int] = {}
        for name, spec in self.inputs.items():
            array = inputs[name]
            if not isinstance(array, np.ndarray) or array.dtype != spec.dtype or not _fits(array.shape, spec, sizes):
                wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape]
                given = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise InvalidArrayError(
                    f"this engine takes {name} as {spec.dtype} [{', '.join(map(str, wanted))}], not {given}."
                )
        return sizes

    def empty(self, sizes: Sizes) -> dict[str, Array]:
        """Outputs of these sizes whose values are undefined."""
        return {name: np.empty(spec.sized(sizes), spec.dtype) for name, spec in self.outputs.items()}

    def require_outputs(self, outputs: Arrays, sizes: Sizes) -> None:
        """Raise BackendExecutionError unless ``outputs`` have the shapes that belong to ``sizes``."""
        found = {name: list(array.shape) for name, array in outputs.items()}
        wanted = {name: list(spec.sized(sizes)) for name, spec in self.outputs.items()}
        if found != wanted:
            raise BackendExecutionError(
                f"the graph gives {_shapes(found)}, the manifest says {_shapes(wanted)}. Export the engine again."
            )


def _fits(shape: tuple[int, ...], spec: TensorSpec, sizes: dict[str, int]) -> bool:
    """Whether ``shape`` is one of ``spec``; sizes that were still free are entered into ``sizes`` where it is."""
    if len(shape) != len(spec.shape):
        return False
    found: dict[str, int] = {}
    for size, wanted in zip(shape, spec.shape, strict=True):
        if size != (wanted if isinstance(wanted, int) else sizes.get(wanted, found.setdefault(wanted, size))):
            return False
    sizes.update((name, size) for name, size in found.items() if name not in sizes)
    return True


def _name(size: str) -> str:
    return size.rpartition("*")[2]


def _times(size: str) -> int:
    factor = size.rpartition("*")[0]
    return int(factor) if factor else 1


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"


def _shapes(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
