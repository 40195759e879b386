"""What a chat-completions server sent, read with care: nothing that it should hold need be there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

_THOUGHTS = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Answer:
    """What the model wrote, why it stopped, tokens (0 where not told), and how many seconds it took."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    seconds: float


def read_answer(completion: Any, seconds: float) -> Answer | None:
    """The library does not check what servers send, so everything may be missing or of another type."""
    try:
        choice = completion.choices[0]
        text = _text(choice.message.content)
        if text is None or (isinstance(text, str) and not text.strip()):
            text = getattr(choice.message, "refusal", None) or _thought(choice.message)
        finish = choice.finish_reason
    except (AttributeError, LookupError, TypeError):
        return None
    if not isinstance(text, str):
        return None
    usage = getattr(completion, "usage", None)
    told = [getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (number if isinstance(number, int) else 0 for number in told)
    return Answer(text, finish if isinstance(finish, str) else "", tokens_in, tokens_out, round(seconds, 3))


def _thought(message: Any) -> str:
    """The one JSON object that some servers take for a thought, where there is no answer; nothing else is one."""
    for name in _THOUGHTS:
        thought = getattr(message, name, None)
        try:
            if isinstance(thought, str) and isinstance(json.loads(thought), dict):
                return thought
        except (ValueError, RecursionError):
            continue
    return ""


def _text(content: Any) -> Any:
    """What some servers send in parts; anything else as it is."""
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if texts else content


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server wants us to wait: a number, or a date; None where it does not say, or says *now*.

    Who asks again at once, and is told the same, has used up a hundred rate limits within a second.
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif value is None:
            return None
        elif value.strip().replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            date = parsedate_to_datetime(value)
            date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
            seconds = (date - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError):
        return None
    return seconds if seconds > 0 else None


def told_by(error: openai.APIStatusError) -> str:
    """What the server said of a request that it did not serve."""
    return message_of(error.body) or _line(error.message)


def complaint(completion: Any) -> str:
    """What a server said that answers 200 and holds an error, or something else."""
    return message_of(getattr(completion, "error", None)) or "not a chat completion"


def message_of(body: Any) -> str:
    """What an error's body says, on one line; empty where it says nothing."""
    said = body.get("message") if isinstance(body, dict) else body
    return _line(said or "")


def _line(said: Any) -> str:
    """On one line and not too long."""
    return " ".join(str(said).split())[:300].rstrip(".")
