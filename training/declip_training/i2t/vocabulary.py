"""Vocabularies: groups of words and phrases, and where they occur in a text.

A vocabulary file is UTF-8 text: terms separated by commas or line ends, ``[group]`` headings (optional), ``#``
comments. A term matches whole words in any case, and its last word also in its simple inflections unless ``=`` stands
before the term; hyphens equal spaces, accents are ignored; British colour, grey and centre match the American spellings
too. Where several terms fit at one place the longest is taken, and its words are not counted again. A term does not
reach across punctuation: ``low. Contrast`` and ``low - contrast`` are not low contrast.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path

from declip_runtime.errors import TrainingError

from .inflection import inflections

_BREAK = ""
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[.,;:!?()\[\]{}|/\n\u2014\u3001\u3002]+|(?<=\s)[-\u2013]+(?=\s)")
_AMERICAN = (
    ("colour", "color"), ("grey", "gray"), ("centred", "centered"), ("centring", "centering"), ("centre", "center"),
)  # fmt: skip


def tokens(text: str) -> list[str]:
    """The words of a text, and an empty string where punctuation or a line end stands between them.

    Words are folded to lower case without accents; ``bird's`` is ``bird``, ``out-of-focus`` is three words.
    """
    plain = text.replace("\u2019", "'")
    if not plain.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return [t.removesuffix("'s") if t[0].isalnum() else _BREAK for t in _TOKEN.findall(plain.casefold())]


def words(text: str) -> list[str]:
    """The words of a text as ``tokens`` has them."""
    return [token for token in tokens(text) if token != _BREAK]


@dataclass(frozen=True)
class Match:
    """A ``term`` of the vocabulary at the ``tokens`` from ``start`` to ``end`` (exclusive) of a text."""

    term: str
    start: int
    end: int


class Vocabulary:
    """Terms by group, and their places in texts.

    ``groups`` maps each term to its group; ``sha256`` identifies the content, whatever its order.
    """

    def __init__(self, groups: Mapping[str, str]) -> None:
        self.groups = {term.removeprefix("="): group for term, group in groups.items()}
        self.sha256 = hashlib.sha256("\n".join(sorted(groups)).encode()).hexdigest()
        self._index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for term in groups:
            name = term.removeprefix("=")
            for form in _forms(term):
                self._index.setdefault(form[0], []).append((form[1:], name))
        self._first = _firsts(groups)
        for first, entries in self._index.items():  # a term as it is written goes before an inflection of another
            entries.sort(key=partial(_precedence, first))

    def __len__(self) -> int:
        return len(self.groups)

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a vocabulary file. Raises TrainingError where it cannot be read or holds no terms."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"the vocabulary {path} cannot be read: {error}. Give a text file in UTF-8.") from error
        return cls._parse(text, str(path))

    @classmethod
    @cache
    def bundled(cls, name: str) -> Vocabulary:
        """``"perceptual"``, ``"semantic"``, or ``"english"`` (function words and neutral ones), as they ship."""
        text = resources.files(__package__).joinpath(f"words/{name}.txt").read_text(encoding="utf-8")
        return cls._parse(text, name)

    @classmethod
    def _parse(cls, text: str, name: str) -> Vocabulary:
        groups: dict[str, str] = {}
        group = ""
        for line in text.splitlines():
            line = line.partition("#")[0].strip()
            if line.startswith("[") and line.endswith("]"):
                group = line[1:-1].strip()
                continue
            for term in line.split(","):
                if words(term):
                    groups.setdefault(" ".join(term.casefold().split()), group)
        if not groups:
            raise TrainingError(f"the vocabulary {name} holds no terms. Write one term a line.")
        return cls(groups)

    def matches(self, text: str | Sequence[str]) -> list[Match]:
        """Terms in the text (or in its ``tokens``), from left to right, longest first, without overlap."""
        parts = tokens(text) if isinstance(text, str) else text
        index, found, place, end = self._index, [], 0, len(parts)
        while place < end:
            for rest, term in index.get(parts[place], ()):
                stop = place + 1 + len(rest)
                if not rest or (stop <= end and tuple(parts[place + 1 : stop]) == rest):
                    found.append(Match(term, place, stop))
                    place = stop - 1
                    break
            place += 1
        return found

    def count(self, text: str, *, repeats: bool = False) -> int:
        """How many terms the text holds; one that is repeated counts once unless ``repeats``.

        Two of which one is an inflection of the other, as highlight and highlights, are one.
        """
        terms = [self._first.get(match.term, match.term) for match in self.matches(text)]
        return len(terms) if repeats else len(set(terms))


def _firsts(terms: Iterable[str]) -> dict[str, str]:
    """For each term that is another, shorter one with its words inflected: that one."""
    alike: dict[tuple[str, ...], list[tuple[str, list[frozenset[str]]]]] = {}
    firsts: dict[str, str] = {}
    for term in sorted(terms, key=lambda term: (len(term), term)):
        name, parts = term.removeprefix("="), _written(term)
        near = alike.setdefault(tuple(part[:2] for part in parts), [])
        for other, forms in near:
            if all(part in form for part, form in zip(parts, forms, strict=True)):
                firsts[name] = firsts.get(other, other)
                break
        if not term.startswith("="):
            near.append((name, [inflections(part) for part in parts]))
    return firsts


def _written(term: str) -> list[str]:
    """The tokens of a term; punctuation counts where it stands between words, as in f/2.8."""
    parts = tokens(term)
    while parts[-1] == _BREAK:
        parts.pop()
    while parts[0] == _BREAK:
        parts.pop(0)
    return parts


def _precedence(first: str, entry: tuple[tuple[str, ...], str]) -> tuple[int, bool]:
    rest, term = entry
    return -len(rest), [first, *rest] not in (_written(term), _written(_american(term)))


def _forms(term: str) -> Iterator[tuple[str, ...]]:
    """Every way in which the term is written, as words."""
    name = term.removeprefix("=")
    for spelling in {name, _american(name)}:
        *head, last = _written(spelling)
        for form in {last} if term.startswith("=") else inflections(last):
            yield (*head, form)


def _american(text: str) -> str:
    for british, american in _AMERICAN:
        text = text.replace(british, american)
    return text
