"""From what a model answered to two descriptions, or the reason why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .decoupling import Limits, Vocabularies, coupling
from .language import foreign
from .vocabulary import words

KEYS = ("perceptual", "semantic")
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_LONGEST_REPLY = 20_000
_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>"  # where it begins is often in the prompt, not in the reply
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in KEYS},
    "required": list(KEYS),
    "additionalProperties": False,
}
"""What servers that support structured output are asked for."""


class ReplyError(ValueError):
    """A reply that is not accepted; the message is the reason, as one phrase."""


@dataclass(frozen=True)
class Descriptions:
    """A perceptual (T_p) and a semantic (T_s) description, each one line."""

    perceptual: str
    semantic: str


@dataclass(frozen=True)
class Judge:
    """What makes a reply acceptable. ``max_words`` bounds each text: CLIP reads 77 tokens, some 55 to 60 words."""

    vocabularies: Vocabularies
    limits: Limits = field(default_factory=Limits)
    max_words: int = 60

    def accept(self, reply: str) -> Descriptions:
        """The two descriptions of a reply. Raises ReplyError with the reason where it is not acceptable."""
        found = parse(reply)
        for key, text in (("perceptual", found.perceptual), ("semantic", found.semantic)):
            if (number := len(words(text))) > self.max_words:
                raise ReplyError(f"the {key} text has {number} words, more than {self.max_words}")
            if reason := foreign(text, self.vocabularies):
                raise ReplyError(f"the {key} text {reason}")
        if reason := coupling(found.perceptual, found.semantic, self.vocabularies, self.limits):
            raise ReplyError(reason)
        return found


def after_thought(reply: str) -> str:
    """What a model says once it has thought."""
    return reply.rpartition(_END_OF_THOUGHT)[2]


def misleading(character: str) -> bool:
    """Whether it is a control character, or one that turns the direction of what is read."""
    return character < " " or "\x7f" <= character <= "\x9f" or character in _DIRECTIONS


def parse(reply: str) -> Descriptions:
    """Read the one JSON object of a reply: exactly the two keys, each a text that is not empty.

    Prose and code fences around the object are passed over, and what a reasoning model thinks before it, which may
    hold drafts. Raises ReplyError where there is no object, more than one, or another schema.
    """
    answer = after_thought(reply)
    if _THOUGHT in answer:
        raise ReplyError("the reply ends in the middle of a thought")
    if len(answer) > _LONGEST_REPLY:
        raise ReplyError(f"the reply has {len(answer)} characters, more than {_LONGEST_REPLY}")
    objects = list(_objects(answer))
    if not objects:
        raise ReplyError("no JSON object in the reply")
    if len(objects) > 1:
        raise ReplyError(f"{len(objects)} JSON objects in the reply instead of one")
    pairs = objects[0]
    if sorted(key for key, _ in pairs) != sorted(KEYS):
        names = ", ".join(repr(key) for key, _ in pairs) or "none"
        raise ReplyError(f"the keys are {names[:200]} instead of 'perceptual' and 'semantic'")
    found = dict(pairs)
    for key in KEYS:
        if not isinstance(found[key], str) or not found[key].strip():
            raise ReplyError(f"the {key} text is empty or no text")
    texts = {key: " ".join(found[key].split()) for key in KEYS}
    if any("\ud800" <= character <= "\udfff" for text in texts.values() for character in text):
        raise ReplyError("a text holds half a character (a lone surrogate)")
    if any(misleading(character) for text in texts.values() for character in text):
        raise ReplyError("a text holds a control character")
    return Descriptions(**texts)


def _objects(text: str) -> Iterator[list[tuple[str, Any]]]:
    """The outermost JSON objects in a text, as pairs, so that repeated keys are seen."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs)
    place = text.find("{")
    while place >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
            yield found
        except ValueError:
            place += 1
        except RecursionError as error:  # so would every brace inside, and each try costs time
            raise ReplyError("the JSON in the reply is nested too deeply") from error
        place = text.find("{", place)


class _Pairs(list[tuple[str, Any]]):
    """The pairs of one object."""
