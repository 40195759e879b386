"""Are two descriptions really apart? Measured by the share of perceptual and semantic vocabulary in each.

Of a text's content words (all but function words and neutral ones such as *image* or *shot*) the perceptual share
belongs to terms of the perceptual vocabulary, the semantic share to terms of the semantic one. A word of both counts
for what the text is meant to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from declip_runtime.errors import TrainingError

from .vocabulary import Vocabulary, tokens


@dataclass(frozen=True)
class Shares:
    """Of one text: content words, distinct perceptual terms, and which shares (0..1) of the words are of which kind."""

    content: int
    terms: int
    perceptual: float
    semantic: float


@dataclass(frozen=True)
class Limits:
    """What a perceptual text (T_p) and a semantic text (T_s) must hold at least and may hold at most, as shares 0..1.

    The defaults are ours, the paper states none. Colours are perceptual, and people name them when they say what a
    photo shows: hence the room for them in a semantic text. Of Flickr8k's human captions (40,960) the limits accept
    88 %; the others mostly name several colours.

    Raises TrainingError for a share out of 0..1 and a negative number of terms.
    """

    perceptual_minimum: float = 0.35
    perceptual_maximum_semantic: float = 0.25
    perceptual_terms: int = 3
    semantic_minimum: float = 0.2
    semantic_maximum_perceptual: float = 0.25

    def __post_init__(self) -> None:
        if self.perceptual_terms < 0:
            raise TrainingError(f"perceptual_terms={self.perceptual_terms} is no number of terms. Give 0 or more.")
        for name, share in vars(self).items():
            if name != "perceptual_terms" and not 0 <= share <= 1:
                raise TrainingError(f"{name}={share:g} is no share. Give a number from 0 to 1, as in {name}=0.3.")


@dataclass(frozen=True)
class Vocabularies:
    """The three vocabularies that decoupling and language are judged with."""

    perceptual: Vocabulary
    semantic: Vocabulary
    english: Vocabulary

    @classmethod
    def default(cls, perceptual: Vocabulary | None = None) -> Vocabularies:
        """The bundled ones, or another ``perceptual`` one."""
        bundled = Vocabulary.bundled
        return cls(perceptual or bundled("perceptual"), bundled("semantic"), bundled("english"))

    def shares_of_perceptual(self, text: str) -> Shares:
        """The shares of a text that is meant to be perceptual."""
        return self._shares(text, perceptual_first=True)

    def shares_of_semantic(self, text: str) -> Shares:
        """The shares of a text that is meant to be semantic."""
        return self._shares(text, perceptual_first=False)

    def known(self, text: str) -> float:
        """The share (0..1) of a text's words that any of the vocabularies knows; 0 for a text without words."""
        parts = tokens(text)
        every = (self.perceptual, self.semantic, self.english)
        known = set[int]().union(*(_places(vocabulary, parts) for vocabulary in every))
        return len(known) / max(sum(map(bool, parts)), 1)

    def _shares(self, text: str, *, perceptual_first: bool) -> Shares:
        parts = tokens(text)
        perceptual, semantic = _places(self.perceptual, parts), _places(self.semantic, parts)
        if perceptual_first:
            semantic -= perceptual
        else:
            perceptual -= semantic
        neutral = _places(self.english, parts) - perceptual - semantic
        content = sum(map(bool, parts)) - len(neutral)
        terms = len({m.term for m in self.perceptual.matches(parts)})
        return Shares(content, terms, len(perceptual) / max(content, 1), len(semantic) / max(content, 1))


def coupling(perceptual: str, semantic: str, vocabularies: Vocabularies, limits: Limits) -> str | None:
    """Why the two texts are not decoupled, in one phrase; None where they are."""
    p = vocabularies.shares_of_perceptual(perceptual)
    s = vocabularies.shares_of_semantic(semantic)
    if p.terms < limits.perceptual_terms:
        return f"the perceptual text holds {p.terms} perceptual terms, fewer than {limits.perceptual_terms}"
    if p.semantic > limits.perceptual_maximum_semantic:
        return f"the perceptual text is {p.semantic:.0%} semantic, more than {limits.perceptual_maximum_semantic:.0%}"
    if p.perceptual < limits.perceptual_minimum:
        return f"the perceptual text is {p.perceptual:.0%} perceptual, less than {limits.perceptual_minimum:.0%}"
    if s.perceptual > limits.semantic_maximum_perceptual:
        return f"the semantic text is {s.perceptual:.0%} perceptual, more than {limits.semantic_maximum_perceptual:.0%}"
    if s.semantic < limits.semantic_minimum:
        return f"the semantic text is {s.semantic:.0%} semantic, less than {limits.semantic_minimum:.0%}"
    return None


def _places(vocabulary: Vocabulary, parts: Sequence[str]) -> set[int]:
    return {place for match in vocabulary.matches(parts) for place in range(match.start, match.end)}
