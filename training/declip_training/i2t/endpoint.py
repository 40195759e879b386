"""A chat-completions endpoint, patiently: rate limits, overload, time-outs and broken replies are waited out."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin

from declip_runtime.errors import TrainingError

from .answer import Answer, complaint, message_of, read_answer, retry_after, told_by
from .reply import SCHEMA

if TYPE_CHECKING:
    import openai

ResponseFormat = Literal["schema", "object", "none"]
_FORMATS: Mapping[str, dict[str, Any]] = {
    "schema": {
        "type": "json_schema",
        "json_schema": {"name": "descriptions", "strict": True, "schema": SCHEMA},
    },
    "object": {"type": "json_object"},
}
_LONGEST_WAIT = 3600.0
_TIMEOUTS_A_REQUEST = 10
"""How many of them one request may last: a server that drips bytes is never silent for a whole one."""
_RETRIED = (408, 409, 425)
_LAST_PORT = 65535
_TOLD = 20.0  # seconds of waiting that a person would wonder at
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""Every server knows the first, but OpenAI's own for its newer models, which says so and knows the second."""
_RATE_LIMITS = 100
"""How many of them one request stands: other workers may be served in its place, so they are no failures of it."""


_EMPTY = (
    "the reply is empty: a model that thinks may have used up its tokens for that. Let it not think, with "
    """--extra '{"chat_template_kwargs": {"enable_thinking": false}}' (vLLM, llama.cpp) or """
    """--extra '{"reasoning_effort": "none"}' (Ollama), or give it more with --max-tokens"""
)


class EndpointError(TrainingError):
    """The endpoint cannot serve anybody: a wrong address, model or key, or a budget that is used up."""


class RefusedError(Exception):
    """This one request is refused for good; the message is the reason."""


class UnansweredError(Exception):
    """This one request was tried as often as allowed; the message is the last reason."""


class StoppedError(Exception):
    """The run ends; nothing is to be asked any more."""


@dataclass(frozen=True)
class EndpointOptions:
    """Where and how to ask.

    ``key`` None sends a placeholder, as local servers expect. ``timeout`` is seconds without a byte from the server;
    what has not ended after ten times that is given up, too. A request is tried 1 + ``retries`` times, rate limits not
    counted, with pauses of ``backoff`` seconds that double up to ``longest_backoff``, or as long as the server says.
    A reply ends after ``max_tokens``, since some models go on for ever where a schema binds them. ``extra`` is merged
    into the request's body (temperature, ...); a limit of tokens in it counts instead.
    """

    base_url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_backoff: float = 60.0
    response_format: ResponseFormat = "schema"
    max_tokens: int = 1024
    extra: Mapping[str, Any] = field(default_factory=dict)


class Endpoint:
    """Asks one endpoint from many threads; a rate limit that one of them meets makes all of them wait.

    Nothing is sent but what is asked, and nowhere else: no ``OPENAI_*`` variable counts, no redirect is followed.
    ``waits`` counts why requests were repeated; ``say`` is told of a wait that the endpoint asks for, where it is long.
    After ``stop`` is set, ``ask`` raises StoppedError instead of waiting.
    """

    def __init__(
        self, options: EndpointOptions, stop: threading.Event, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.options = options
        self.waits: Counter[str] = Counter()
        self._stop, self._say = stop, say
        self._lock = threading.Lock()
        self._open_again = self._told_until = 0.0
        self._limit = _LIMIT
        self._client = _client(options)
        self._loop = _loop()

    def ask(self, messages: list[dict[str, Any]]) -> Answer:
        """Send one chat and return the answer.

        Raises RefusedError, UnansweredError or StoppedError for this request, EndpointError where none can succeed.
        """
        pause, failures, limits, reason = self.options.backoff, 0, 0, ""
        while failures <= self.options.retries and limits < _RATE_LIMITS:
            self._wait_for_the_gate()
            reason, told = self._try(messages)
            if isinstance(told, Answer):
                if not told.text.strip():
                    raise UnansweredError(_EMPTY)
                return told
            with self._lock:
                self.waits[reason] += 1
            limited = reason.startswith("429")
            limits, failures = limits + limited, failures + (not limited)
            own = min(pause, self.options.longest_backoff) * random.uniform(0.75, 1.25)
            pause *= 2
            if told is not None or limited:
                self._close_the_gate(own if told is None else told, asked=told is not None)
            elif self._stop.wait(own):
                raise StoppedError
        raise UnansweredError(f"{reason}, {failures + limits} times")

    def _try(self, messages: list[dict[str, Any]]) -> tuple[str, Answer | float | None]:
        """The answer; or why there is none and how many seconds the server wants us to wait (None: it does not say)."""
        import openai

        start = time.monotonic()
        try:
            completion = self._create(messages)
        except openai.APITimeoutError:
            return f"no byte in {self.options.timeout:g} s", None
        except asyncio.TimeoutError:
            return f"no end in {self._longest:g} s", None
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:
            return f"connection failed ({_innermost(error)})", None
        except (openai.APIError, ValueError, RecursionError) as error:  # the body is no JSON, or half of one
            return f"broken reply ({type(error).__name__})", None
        answer = read_answer(completion, time.monotonic() - start)
        return (f"broken reply ({complaint(completion)})", None) if answer is None else ("", answer)

    def _create(self, messages: list[dict[str, Any]]) -> Any:
        import openai

        limit = self._limit
        try:
            return self._send(messages, limit)
        except openai.BadRequestError as error:
            if limit == _NEW_LIMIT or _NEW_LIMIT not in told_by(error):
                raise
            self._limit = _NEW_LIMIT
            return self._send(messages, _NEW_LIMIT)

    def _send(self, messages: list[dict[str, Any]], limit: str) -> Any:
        optional = {"response_format": _FORMATS[f]} if (f := self.options.response_format) in _FORMATS else {}
        extra = dict(self.options.extra)
        if not extra.keys() & {_LIMIT, _NEW_LIMIT}:
            extra[limit] = self.options.max_tokens
        create: Any = self._client.chat.completions.create
        asked = create(model=self.options.model, messages=messages, extra_body=extra, **optional)
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(asked, self._longest), self._loop).result()

    @property
    def _longest(self) -> float:
        return _TIMEOUTS_A_REQUEST * self.options.timeout

    def _status(self, error: openai.APIStatusError) -> tuple[str, float | None]:
        status, location = error.status_code, error.response.headers.get("location")
        if 300 <= status < 400 and location:
            target = _absolute(str(error.request.url), location)
            raise EndpointError(
                f"{self.options.base_url} redirects to {target}, where nothing was sent. If image and text may go "
                f"there, name it: --base-url {target.removesuffix('/chat/completions')}."
            ) from error
        reason = f"{status} {error.response.reason_phrase}".strip()
        told = told_by(error)
        if status in (401, 402, 404) or (status == 429 and getattr(error, "code", None) == "insufficient_quota"):
            raise EndpointError(
                f"{self.options.base_url} answers {reason}: {told}. Check the address, the model "
                f"{self.options.model!r}, the key, whose variable --key-variable names, and what its budget allows."
            ) from error
        if status != 429 and status < 500 and status not in _RETRIED:
            raise RefusedError(f"{reason}: {told}") from error
        said = message_of(error.body) if status >= 500 else ""  # llama.cpp says so that a model takes no images
        return f"{reason}: {said}" if said else reason, retry_after(error.response.headers)

    def _wait_for_the_gate(self) -> None:
        while True:
            with self._lock:
                left = self._open_again - time.monotonic()
            together = random.uniform(0, min(left / 4, 1.0)) if left > 0 else 0.0  # so that not all ask at once then
            if self._stop.is_set() or (left > 0 and self._stop.wait(left + together)):
                raise StoppedError
            if left <= 0:
                return

    def _close_the_gate(self, seconds: float, *, asked: bool) -> None:
        if seconds > _LONGEST_WAIT:
            raise EndpointError(
                f"{self.options.base_url} asks to wait {seconds / 3600:.1f} hours. Run the same command again then."
            )
        with self._lock:
            now = time.monotonic()
            says = asked and seconds >= _TOLD and now + seconds > self._told_until + _TOLD
            self._told_until = now + seconds if says else self._told_until
            self._open_again = max(self._open_again, now + seconds)
        if says:
            self._say(f"the endpoint asks to wait {seconds:.0f} s")


def _client(options: EndpointOptions) -> openai.AsyncOpenAI:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise TrainingError("relabelling needs the package openai. Run: pip install 'declip-sdk[train]'") from error
    wrong = TrainingError(f"{options.base_url!r} is no address. Give one such as http://localhost:8000/v1.")
    if not options.base_url.startswith(("http://", "https://")):
        raise wrong
    http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
    try:
        with _without_variables("OPENAI_"):
            client = openai.AsyncOpenAI(
                base_url=options.base_url,
                api_key=options.key or "none",
                timeout=options.timeout,
                max_retries=0,
                http_client=http,
            )
    except Exception as error:  # which one depends on the HTTP library that openai brings
        raise wrong from error
    if not client.base_url.host or (client.base_url.port or 0) > _LAST_PORT:
        raise wrong
    return client


@contextmanager
def _without_variables(prefix: str) -> Iterator[None]:
    """The client takes key, organisation and headers from the environment, and no argument keeps it from that."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where requests run, for there one can be given up in the middle, with its connection; in a thread none can."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _absolute(asked: str, location: str) -> str:
    try:
        return urljoin(asked, location)
    except ValueError:  # it is no address
        return location


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:120] or type(error).__name__
