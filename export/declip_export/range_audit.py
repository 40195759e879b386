"""Which values of a graph FP16 cannot hold: real images run through it in FP32, and every value is looked at.

FP16 ends at 65504, and below 6e-5 it has fewer and fewer digits. A value fails where its magnitude comes near the
end, where a sum inside the product that makes it can, whatever the order of its terms, or where rounding takes more of
it than of any value in the middle. Images are few, so magnitudes must stay a factor below the end; constants are
known, so theirs need not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto
from torch import Tensor

from .evaluator import Evaluator, arithmetic, constant_tensor
from .onnx_graph import Array, OnnxGraph
from .precision import PRODUCTS, to_fp16

LARGEST = 65504.0
SAFETY = 4.0
"""How many times larger than on the audit's images a value may get on others."""
LOSS_LIMIT = 2.0**-10
"""Twice what rounding to 11 bits takes at worst; more is lost only where values are too small for all 11."""

_IMAGES = 16
_BATCH = 4
_SAMPLES = 1 << 13  # values of a tensor that tell how much rounding takes

Reason = Literal["overflow", "overflowing sum", "lost precision"]


@dataclass(frozen=True)
class ValueRange:
    """What was seen of one value: the ``node`` that makes it (that reads it, for a constant), its largest ``magnitude``
    and that of any partial sum inside the node, and the share of its norm that rounding to FP16 would ``lose``."""

    tensor: str
    node: str
    magnitude: float
    partial_sum: float
    loses: float
    limit: float

    @property
    def reason(self) -> Reason | None:
        """Why the value must stay FP32, None if it need not."""
        if self.magnitude > self.limit:
            return "overflow"
        if self.partial_sum > self.limit:
            return "overflowing sum"
        return "lost precision" if self.loses > LOSS_LIMIT else None


@dataclass(frozen=True)
class RangeAudit:
    """The ranges of all values that would be FP16, in the graph's order, as seen on ``images`` images."""

    images: int
    ranges: tuple[ValueRange, ...]

    @property
    def kept(self) -> tuple[ValueRange, ...]:
        """Those that must stay FP32."""
        return tuple(r for r in self.ranges if r.reason is not None)

    def to_fp16(self, graph: OnnxGraph) -> OnnxGraph:
        """``graph``, or a quantized copy of it, typed FP16 but for what must stay FP32."""
        return to_fp16(graph, frozenset(r.tensor for r in self.kept))

    def summary(self) -> dict[str, Any]:
        """Plain data for an engine's provenance: how it was judged, the largest value, and each that stays FP32."""
        largest = max(self.ranges, key=lambda r: r.magnitude, default=None)
        return {
            "images": self.images,
            "values": len(self.ranges),
            "limit": LARGEST / SAFETY,
            "largest": None if largest is None else {"tensor": largest.tensor, "magnitude": largest.magnitude},
            "kept_fp32": [
                {"tensor": r.tensor, "node": r.node, "magnitude": r.magnitude, "reason": r.reason} for r in self.kept
            ],
        }


def audit_range(graph: OnnxGraph, images: Array) -> RangeAudit:
    """Run the FP32 ``graph`` on at most 16 of ``images`` uint8 [N, S, S, 3], spread over them, and judge its values."""
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).round().astype(int)]
    name = graph.inputs[0].name
    return audit_feeds(graph, [{name: chosen[start : start + _BATCH]} for start in range(0, len(chosen), _BATCH)])


def audit_feeds(graph: OnnxGraph, feeds: Sequence[Mapping[str, Array]]) -> RangeAudit:
    """Run the FP32 ``graph`` on each of ``feeds``, inputs by name with the batch first, and judge its values."""
    observer, evaluator = _Observer(graph), Evaluator(graph)
    for feed in feeds:
        evaluator.run(feed, observer.watch)
    seen = sum(len(next(iter(feed.values()))) for feed in feeds)
    return RangeAudit(seen, tuple(observer.ranges()))


class _Observer:
    """Looks at every value of a graph that would be FP16, constants first."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._halves = _halves(graph)
        self._seen: dict[str, _Seen] = {}
        self._sums: dict[str, float] = {}  # of weights, which every batch meets again
        readers = {name: node for node in reversed(graph.nodes) for name in node.input}
        for name in graph.constants:
            if name in self._halves:
                self._seen[name] = _Seen(_title(readers[name]), LARGEST)
                self._seen[name].add(constant_tensor(graph, name))

    def watch(self, node: NodeProto, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        for name, values in zip(node.output, outputs, strict=True):
            if name in self._halves:
                seen = self._seen.setdefault(name, _Seen(_title(node), LARGEST / SAFETY))
                seen.add(values, self._largest_sum(node, inputs) if node.op_type in PRODUCTS else 0.0)

    def ranges(self) -> Iterator[ValueRange]:
        return (seen.range(name) for name, seen in self._seen.items())

    def _largest_sum(self, node: NodeProto, inputs: Sequence[Tensor]) -> float:
        """No partial sum of this product is larger, in whatever order its terms are added."""
        weight = node.input[1]
        largest = self._sums.get(weight) or _largest(_summed(node, inputs[1].abs()))
        if weight in self._graph.constants:
            self._sums[weight] = largest
        quick = _largest(inputs[0]) * largest
        if quick <= LARGEST / SAFETY:  # nearly always, and it spares a second product
            return quick
        return _largest(arithmetic(node, [x.abs() for x in inputs]))


class _Seen:
    """The worst of one value over batches."""

    def __init__(self, node: str, limit: float) -> None:
        self._node, self._limit = node, limit
        self._magnitude = self._partial_sum = self._loses = 0.0

    def add(self, values: Tensor, partial_sum: float = 0.0) -> None:
        self._magnitude = max(self._magnitude, _largest(values))
        self._partial_sum = max(self._partial_sum, partial_sum)
        self._loses = max(self._loses, _loss(values))

    def range(self, tensor: str) -> ValueRange:
        return ValueRange(tensor, self._node, self._magnitude, self._partial_sum, self._loses, self._limit)


def _halves(graph: OnnxGraph) -> set[str]:
    """Values and constants that FP16 nodes would make or read."""
    typed = to_fp16(graph).types
    names = {*graph.types, *graph.constants}
    return {n for n in names if typed.get(n) == TensorProto.FLOAT16 or typed.get(f"{n}.fp16") == TensorProto.FLOAT16}


def _title(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def _largest(values: Tensor) -> float:
    """The largest magnitude; of what is not finite the largest FP32, since a manifest holds finite numbers only."""
    if not values.numel():
        return 0.0
    array = values.numpy()  # whose extremes take a fifth of the time that torch's do
    largest = float(max(-array.min(), array.max()))
    return largest if np.isfinite(largest) else float(np.finfo(np.float32).max)


def _loss(values: Tensor) -> float:
    """The share of its norm that a tensor loses when rounded to FP16."""
    sample = values.flatten()[:: max(1, values.numel() // _SAMPLES)].clamp(-LARGEST, LARGEST)
    norm = float(sample.double().norm())
    return float((sample.half().double() - sample.double()).norm()) / norm if norm > 0 else 0.0


def _summed(node: NodeProto, right: Tensor) -> Tensor:
    """The second operand of a product, summed over the terms of each of the product's sums."""
    if node.op_type == "Conv":
        return right.sum(tuple(range(1, right.ndim)))
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return right.sum(-1 if transposed else -2)
