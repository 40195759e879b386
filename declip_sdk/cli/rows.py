"""Scores for programs: JSON Lines, CSV, and one JSON document.

Values are rounded to six digits, a failed image has null (CSV: nothing) instead of values and its reason in
``error``. Scores can be compared only where the same scored them (``Scorer.identity``): JSON says it once, at its head,
the others in ``scored_with`` of every image, as lines and rows are cut out and stored apart. JSON is pure ASCII, so
names with line breaks or undecodable bytes (as lone surrogates) survive; CSV is UTF-8 with such bytes passed through as
they are.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from declip_runtime.scores import Score

from .output import Output
from .say import say
from .text import count

DIGITS = 6
SCORED_WITH = "scored_with"


class Writer(Protocol):
    """Takes scores one by one; ``finish`` completes the document."""

    def write(self, score: Score) -> None:
        """Add one image."""

    def finish(self, left_out: int) -> None:
        """Complete the document, which ``left_out`` images are not part of because nobody wanted them."""


def _row(score: Score) -> dict[str, Any]:
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in score.to_dict().items()}


class JsonLines:
    """One JSON object a line, flushed at once: a program on the other side of a pipe waits for it."""

    def __init__(self, stream: Output, identity: Mapping[str, Any]) -> None:
        self._stream, self._identity = stream, dict(identity)

    def write(self, score: Score) -> None:
        """Add one line."""
        line = {**_row(score), SCORED_WITH: self._identity}
        self._stream.write(json.dumps(line).encode("ascii") + b"\n")
        self._stream.flush()

    def finish(self, left_out: int) -> None:
        """Nothing is left to do."""


class Json:
    """One document: what scored (``about``), then ``images`` as a list of objects."""

    def __init__(self, stream: Output, about: Mapping[str, Any]) -> None:
        self._stream = stream
        self._separator = b"\n"
        head = json.dumps(about, indent=2)
        self._stream.write(head[:-2].encode("ascii") + b',\n  "images": [')

    def write(self, score: Score) -> None:
        """Add one object."""
        self._stream.write(self._separator + b"    " + json.dumps(_row(score)).encode("ascii"))
        self._separator = b",\n"

    def finish(self, left_out: int) -> None:
        """Close the list and the document."""
        self._stream.write(b"\n  ]\n}\n")
        self._stream.flush()


class Csv:
    """A header and one record an image, flushed at once: ``image``, the scores, ``error``, ``scored_with``.

    The last is ``identity`` as one text, ``engine=... backend=... precision=...`` and so on, last so that the columns
    before keep their places.
    """

    def __init__(self, stream: Output, names: Sequence[str], identity: Mapping[str, Any]) -> None:
        self._stream = stream
        self._identity = " ".join(f"{name}={value}" for name, value in identity.items())
        self._undecodable = 0  # names
        self._put(["image", *names, "error", SCORED_WITH])

    def write(self, score: Score) -> None:
        """Add one record."""
        self._undecodable += any("\udc80" <= letter <= "\udcff" for letter in score.image)
        self._put([*("" if value is None else value for value in _row(score).values()), self._identity])
        self._stream.flush()

    def finish(self, left_out: int) -> None:
        """Tell what keeps many programs from reading the whole file."""
        if self._undecodable:
            say(
                f"{count(self._undecodable, 'file name')} not in UTF-8: the CSV has the bytes as they are. Read it "
                "with errors='surrogateescape', or use --format json."
            )

    def _put(self, record: Sequence[object]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(record)  # what stands in the terminator is quoted
        text = line.getvalue().removesuffix("\r\n") + "\n"
        self._stream.write(text.encode("utf-8", "surrogateescape"))
