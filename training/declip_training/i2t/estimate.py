"""What relabelling will take, before anything is asked: requests, tokens, time, money."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .candidates import Candidate
from .journal import Reply
from .pictures import sent_size
from .prompt import Prompt

_SAMPLE = 200
_ENOUGH = 20
_CHARACTERS_A_TOKEN = 4
_PIXELS_A_TOKEN = 28 * 28
_ASSUMED_TOKENS_OUT = 150
_ASSUMED_SECONDS = 5.0


@dataclass(frozen=True)
class Estimate:
    """Requests, tokens in all of them, seconds of the whole run, and the assumptions behind the numbers, one a line."""

    requests: int
    tokens_in: int
    tokens_out: int
    seconds: float
    assumptions: tuple[str, ...]

    def cost(self, price_in: float, price_out: float) -> float:
        """Money, from prices of a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def estimate(
    waiting: Sequence[Candidate],
    replies: Iterable[Reply],
    prompt: Prompt,
    *,
    max_side: int,
    workers: int,
    image_tokens: int | None = None,
) -> Estimate:
    """Estimate the cost of asking once for each candidate that is ``waiting``.

    Twenty ``replies`` of the journal or more are taken as measured: tokens, seconds, and replies per candidate, if
    the endpoint told the tokens. Otherwise a token is 4 characters of the prompt or 28 x 28 pixels of the image
    (``image_tokens`` overrides), a reply 150 tokens and 5 seconds.
    """
    known = [reply for reply in replies if reply.tokens_in and reply.tokens_out]
    if len(known) >= _ENOUGH:
        return _measured(waiting, known, workers)
    characters = sum(len(prompt.text(c.source_text)) for c in waiting)
    each, how = _image_tokens(waiting, max_side) if image_tokens is None else (float(image_tokens), "as given")
    return Estimate(
        requests=len(waiting),
        tokens_in=round(characters / _CHARACTERS_A_TOKEN + each * len(waiting)),
        tokens_out=_ASSUMED_TOKENS_OUT * len(waiting),
        seconds=len(waiting) * _ASSUMED_SECONDS / workers,
        assumptions=(
            f"{_CHARACTERS_A_TOKEN} characters of text a token",
            f"{each:,.0f} tokens an image ({how}); models differ, --image-tokens sets it",
            f"{_ASSUMED_TOKENS_OUT} tokens and {_ASSUMED_SECONDS:g} s a reply, no reply asked twice; after "
            f"{_ENOUGH} replies that told their tokens the journal's own numbers are used",
        ),
    )


def _image_tokens(waiting: Sequence[Candidate], max_side: int) -> tuple[float, str]:
    step = max(1, len(waiting) // _SAMPLE)
    sizes = [s for c in waiting[::step] if (s := sent_size(Path(c.image), max_side)) is not None]
    mean = statistics.fmean(w * h for w, h in sizes) if sizes else float(max_side * max_side)
    return mean / _PIXELS_A_TOKEN, f"28 x 28 pixels a token, {len(sizes)} images looked at"


def _measured(waiting: Sequence[Candidate], replies: Sequence[Reply], workers: int) -> Estimate:
    each = len(replies) / len({r.id for r in replies})
    requests = round(len(waiting) * each)
    seconds = statistics.fmean(r.seconds for r in replies)
    return Estimate(
        requests=requests,
        tokens_in=round(requests * statistics.fmean(r.tokens_in for r in replies)),
        tokens_out=round(requests * statistics.fmean(r.tokens_out for r in replies)),
        seconds=requests * seconds / workers,
        assumptions=(f"as the {len(replies):,} replies in the journal: {each:.2f} a candidate, {seconds:.1f} s each",),
    )
