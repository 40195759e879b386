"""What is in an I&2T table, in numbers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .decoupling import Vocabularies
from .records import Record
from .vocabulary import words


@dataclass(frozen=True)
class TextNumbers:
    """Words of the texts (median, longest) and mean shares (0..1) of perceptual and semantic vocabulary."""

    median_words: float
    longest: int
    perceptual: float
    semantic: float


@dataclass(frozen=True)
class Summary:
    """Counts by (source, image type), images that several records share, numbers of both texts, frequent terms.

    ``terms`` and ``groups`` count in how many perceptual texts a term, or any of a group, occurs.
    """

    records: int
    images: int
    by_source: Counter[tuple[str, str]]
    perceptual: TextNumbers
    semantic: TextNumbers
    groups: Counter[str]
    terms: Counter[str]


def summarise(records: Sequence[Record], vocabularies: Vocabularies) -> Summary:
    """The numbers of a table that is not empty; images count as equal by hash, or by path where there is none."""
    groups: Counter[str] = Counter()
    terms: Counter[str] = Counter()
    for record in records:
        found = {m.term for m in vocabularies.perceptual.matches(record.perceptual)}
        terms.update(found)
        groups.update({vocabularies.perceptual.groups[term] for term in found})
    of_perceptual = [vocabularies.shares_of_perceptual(r.perceptual) for r in records]
    of_semantic = [vocabularies.shares_of_semantic(r.semantic) for r in records]
    return Summary(
        records=len(records),
        images=len({r.image_sha256 or r.image for r in records}),
        by_source=Counter((r.source, r.image_type) for r in records),
        perceptual=_numbers([r.perceptual for r in records], [(s.perceptual, s.semantic) for s in of_perceptual]),
        semantic=_numbers([r.semantic for r in records], [(s.perceptual, s.semantic) for s in of_semantic]),
        groups=groups,
        terms=terms,
    )


def _numbers(texts: Sequence[str], shares: Sequence[tuple[float, float]]) -> TextNumbers:
    lengths = [len(words(text)) for text in texts]
    perceptual, semantic = (statistics.fmean(column) for column in zip(*shares, strict=True))
    return TextNumbers(statistics.median(lengths), max(lengths), perceptual, semantic)
