"""Simple English inflections of one word: more forms than exist, because a form that nobody writes matches nothing."""

from __future__ import annotations

import re

_VOWELS = "aeiou"
_DOUBLING = re.compile(r"[^aeiou]?[^aeiou]?[^aeiou]?[aeiou][^aeiouwxy]")
"""One short syllable: blur, dim, flat. Longer words that double their last letter are rare in descriptions."""

_OTHER_WORDS = frozenset(
    {"angler", "angling", "being", "cleaning", "clearing", "corner", "early", "flower", "hopefully", "liner", "litter"}
    | {"manner", "originally", "panning", "pearly", "sadly", "shower", "simply", "sparkler", "tier", "uniformly"}
)
"""What the rules would make of flow, lit, man, ear, bee and the like, but is another word in descriptions."""


def inflections(word: str) -> frozenset[str]:
    """The word, its plural, and its forms in -ed, -ing, -er, -est and -ly with English spelling (hazy: hazier, hazily).

    Words of one or two letters, and those with digits, have one form.
    """
    if len(word) < 3 or not word.isalpha():
        return frozenset({word})
    formed = {_plural(word), *(f"{_stem(word)}{e}" for e in ("ed", "er", "est")), _ing(word), _ly(word)}
    return frozenset({word, *(formed - _OTHER_WORDS)})


def _plural(word: str) -> str:
    if word[-1] == "y" and word[-2] not in _VOWELS:
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"


def _stem(word: str) -> str:
    """What -ed, -er and -est are put to."""
    if word[-1] == "e":
        return word[:-1]
    if word[-1] == "y" and word[-2] not in _VOWELS:
        return f"{word[:-1]}i"
    return word + word[-1] if _DOUBLING.fullmatch(word) else word


def _ing(word: str) -> str:
    return f"{word}ing" if word[-1] == "y" else f"{_stem(word)}ing"


def _ly(word: str) -> str:
    if word[-1] == "y" and word[-2] not in _VOWELS:
        return f"{word[:-1]}ily"
    if word.endswith("le") and word[-3] not in _VOWELS:
        return f"{word[:-1]}y"
    return f"{word}ally" if word.endswith("ic") else f"{word}ly"
