"""Counting what cannot be used, with the first examples: nothing is skipped in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

EXAMPLES = 3


@dataclass
class Tally:
    """Problems by kind, how often each occurred, and where it occurred first."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        """Count one problem; the first ``EXAMPLES`` of a kind are kept."""
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(example)

    def lines(self) -> Iterator[str]:
        """One line a kind, most frequent first: ``3 x missing image: a.jpg; b.jpg; c.jpg``."""
        for kind, number in self.counts.most_common():
            more = "; ..." if number > len(self.examples[kind]) else ""
            yield f"{number:,} x {kind}: {'; '.join(self.examples[kind])}{more}"

    def __bool__(self) -> bool:
        return bool(self.counts)
