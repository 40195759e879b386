"""Which descriptions are rich enough: at least seven terms of a perceptual vocabulary (section 3.1 of the paper)."""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from declip_runtime.errors import TrainingError

from .candidates import Candidate
from .sources import Described
from .vocabulary import Vocabulary

PAPER_MINIMUM = 7
Texts = Literal["richest", "joined", "each"]


@dataclass
class Selection:
    """What was kept, and how much was read, as in the paper's Table 1; keys of the counts are (source, image type).

    ``repeated`` descriptions came from two files of one data set. An image is counted under the type of what was kept
    of it, else of its first description.
    """

    kept: list[Candidate] = field(default_factory=list)
    repeated: int = 0
    texts: Counter[tuple[str, str]] = field(default_factory=Counter)
    images: Counter[tuple[str, str]] = field(default_factory=Counter)

    def kept_counts(self) -> Counter[tuple[str, str]]:
        """How many were kept, by (source, image type)."""
        return Counter((c.source, c.image_type) for c in self.kept)


def select(
    described: Iterable[Described],
    vocabulary: Vocabulary,
    *,
    minimum: int = PAPER_MINIMUM,
    repeats: bool = False,
    texts: Texts = "richest",
) -> Selection:
    """Keep descriptions with at least ``minimum`` terms; one that is repeated in a text counts once unless ``repeats``.

    An image may have many descriptions, as comments have. ``"richest"``: the one with the most terms stands for it (of
    equal ones the longer, then the first). ``"joined"``: all of them as one text. ``"each"``: every description that is
    rich enough is kept, so an image may occur several times. Kept are in the order of their first appearance.

    Raises TrainingError where two images of one source and name have the same description and are no copies: one could
    not be told from the other.
    """
    selection = Selection()
    types: dict[tuple[str, str], str] = {}
    seen: set[int] = set()

    def counted() -> Iterator[Described]:
        for one in described:
            selection.texts[one.source, one.type] += 1
            types.setdefault(_image(one), one.type)
            if (pair := hash((*_image(one), one.text))) in seen:
                selection.repeated += 1
            else:
                seen.add(pair)
                yield one

    candidates = _joined(counted()) if texts == "joined" else counted()
    scored = ((vocabulary.count(one.text, repeats=repeats), one) for one in candidates)
    rich: Iterator[tuple[int, Described]] = (pair for pair in scored if pair[0] >= minimum)
    if texts == "richest":
        rich = _richest(rich)
    kept: dict[str, Candidate] = {}
    chosen: dict[tuple[str, str], str] = {}
    for terms, one in rich:
        candidate = Candidate.of(one, terms)
        if (same := kept.setdefault(candidate.id, candidate)) is not candidate:
            if _are_copies(same.image, candidate.image):
                selection.repeated += 1
                continue
            raise TrainingError(
                f"{same.image} and {candidate.image} have the same name and description in two data sets that are both "
                f"called {one.source}. Rename one of the files, so that both images can be told apart."
            )
        chosen.setdefault(_image(one), one.type)
    selection.kept = list(kept.values())
    selection.images = Counter((source, chosen.get((source, image), kind)) for (source, image), kind in types.items())
    return selection


def _are_copies(first: str, second: str) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError:
        return False


def _image(one: Described) -> tuple[str, str]:
    return one.source, str(one.image)


def _joined(described: Iterable[Described]) -> Iterator[Described]:
    together: dict[tuple[str, str], tuple[Described, list[str]]] = {}
    for one in described:
        together.setdefault(_image(one), (one, []))[1].append(one.text)
    for first, parts in together.values():
        yield replace(first, text="\n".join(parts))


def _richest(rich: Iterable[tuple[int, Described]]) -> Iterator[tuple[int, Described]]:
    best: dict[tuple[str, str], tuple[int, Described]] = {}
    for terms, one in rich:
        held = best.get(_image(one))
        if held is None or (terms, len(one.text)) > (held[0], len(held[1].text)):
            best[_image(one)] = (terms, one)
    yield from best.values()
