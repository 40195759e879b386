"""A simple check that a text is English, which is what CLIP's text tower reads.

Letters of other scripts, or too few words that our vocabularies know: function words, neutral words of descriptions,
perceptual and semantic terms. Good English descriptions have three quarters of such words and more, other languages
in Latin letters a few by chance. A text mostly of names the lists lack would be rejected, too; a mixture of languages
passes where English prevails.
"""

from __future__ import annotations

import unicodedata

from .decoupling import Vocabularies

LATIN_MINIMUM = 0.9
KNOWN_MINIMUM = 0.4


def foreign(text: str, vocabularies: Vocabularies) -> str | None:
    """Why the text is not taken for English, in one phrase; None where it is."""
    letters = [c for c in text if c.isalpha()]
    latin = sum(c.isascii() or unicodedata.name(c, "").startswith("LATIN") for c in letters)
    if not letters or latin / len(letters) < LATIN_MINIMUM:
        return "is not written in Latin letters"
    known = vocabularies.known(text)
    return f"is not English: {known:.0%} of its words are known" if known < KNOWN_MINIMUM else None
