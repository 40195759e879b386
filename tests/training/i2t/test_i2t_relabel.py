"""Relabelling against a real HTTP server that speaks the protocol and misbehaves."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from declip_runtime.errors import TrainingError
from declip_training.i2t.candidates import Candidate
from declip_training.i2t.endpoint import Endpoint, EndpointError, EndpointOptions, _absolute
from declip_training.i2t.journal import Journal
from declip_training.i2t.judging import present
from declip_training.i2t.pictures import file_sha256
from declip_training.i2t.prompt import Prompt
from declip_training.i2t.relabel import Outcome, RelabelOptions, records, relabel
from declip_training.i2t.reply import Judge

from .chat_server import PERCEPTUAL, SEMANTIC, ChatServer, Response, chat_server, reply_text
from .conftest import save_image

SETTINGS = {"model": "m"}


def run(
    candidates: list[Candidate],
    server: ChatServer,
    judge: Judge,
    journal: Path,
    options: RelabelOptions | None = None,
    **endpoint: Any,
) -> tuple[Outcome, Endpoint]:
    stop = threading.Event()
    defaults = {"timeout": 5.0, "retries": 3, "backoff": 0.01, "longest_backoff": 0.05}
    asker = Endpoint(EndpointOptions(server.url, "m", **{**defaults, **endpoint}), stop)
    with Journal(journal, SETTINGS) as opened:
        opened.replies, _ = present(candidates, opened.replies)
        options = options or RelabelOptions(workers=3)
        return relabel(candidates, asker, stop, Prompt.read(), judge, opened, options), asker


def first_then(*responses: Response, good: Response | None = None) -> Callable[[str, int], Response]:
    """Candidate ``text 0`` meets these one after the other, then a good reply; the others meet good ones only."""

    def script(text: str, before: int) -> Response:
        return responses[before] if text == "text 0" and before < len(responses) else good or Response()

    return script


def test_all_is_well(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server() as server:
        outcome, asker = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert sorted(server.texts()) == [c.source_text for c in candidates]
    assert not asker.waits
    assert (outcome.asked, outcome.tokens_in, outcome.tokens_out) == (6, 600, 240)
    made = records(tmp_path / "t.parquet", candidates, outcome)
    assert [r.id for r in made] == [c.id for c in candidates]
    assert {(r.perceptual, r.semantic) for r in made} == {(PERCEPTUAL, SEMANTIC)}
    assert [r.image for r in made] == [f"images/{n}.jpg" for n in range(6)]
    assert [r.image_sha256 for r in made] == [file_sha256(Path(c.image)) for c in candidates]
    elsewhere = tmp_path / "elsewhere" / "t.parquet"
    assert [r.image for r in records(elsewhere, candidates, outcome)] == [c.image for c in candidates]
    (tmp_path / "elsewhere").mkdir()
    elsewhere.write_bytes(b"")
    (tmp_path / "link.parquet").symlink_to(elsewhere)  # a table takes the place of the link, not of its file
    assert [r.image for r in records(tmp_path / "link.parquet", candidates, outcome)] == [r.image for r in made]


def test_the_request_is_what_the_protocol_says(tmp_path: Path, candidates: list[Candidate], judge: Judge) -> None:
    save_image(Path(candidates[0].image), 0, (1000, 500))
    with chat_server() as server:
        options = RelabelOptions(max_side=200, workers=1)
        run(candidates[:1], server, judge, tmp_path / "j.jsonl", options, key="secret", extra={"temperature": 0.5})
    seen = server.seen[0]
    assert seen.headers["authorization"] == "Bearer secret"
    assert (seen.body["model"], seen.body["temperature"]) == ("m", 0.5)
    assert seen.body["response_format"]["json_schema"]["schema"]["required"] == ["perceptual", "semantic"]
    image, text = seen.body["messages"][0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (200, 100)
    assert "text 0" in text["text"]


def test_nothing_of_the_environment_is_sent(
    candidates: list[Candidate], judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer private\nX-Secret: private")
    with chat_server() as server:
        run(candidates[:1], server, judge, tmp_path / "j.jsonl", response_format="none")
    assert "private" not in repr(server.seen[0].headers)
    assert "response_format" not in server.seen[0].body
    assert os.environ["OPENAI_API_KEY"] == "private"  # others in this process may need it


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_but_named(
    status: int, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server() as other, chat_server() as server:
        server.script = lambda *_: Response(status=status, headers={"Location": f"{other.url}/chat/completions"})
        with pytest.raises(EndpointError) as raised:
            run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
    assert f"redirects to {other.url}/chat/completions, where nothing was sent" in str(raised.value)
    assert f"--base-url {other.url}." in str(raised.value)
    assert (len(server.seen), len(other.seen)) == (1, 0)


def test_a_redirect_on_the_same_server_is_named_in_full(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server(lambda *_: Response(status=308, headers={"Location": "/v2/chat/completions"})) as server:
        with pytest.raises(EndpointError) as raised:
            run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
        assert f"redirects to {server.url.removesuffix('v1')}v2/chat/completions" in str(raised.value)
    assert _absolute(server.url, "http://[::1") == "http://[::1"  # older HTTP libraries take that for a broken reply


def test_a_rate_limit_makes_every_worker_wait(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    limited = threading.Event()

    def script(*_: Any) -> Response:
        if not limited.is_set():
            limited.set()
            return Response(status=429, headers={"Retry-After": "1"})
        return Response(stall=0.2)

    with chat_server(script) as server:
        outcome, asker = run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=3), backoff=60.0)
    assert len(outcome.accepted) == 6
    assert asker.waits == {"429 Too Many Requests": 1}
    assert len(server.seen) == 7
    times = [seen.at - server.seen[0].at for seen in server.seen]
    assert times[3] >= 0.95  # at most three were under way when the limit was met


@pytest.mark.parametrize(
    ("headers", "backoff"),
    [
        ({"retry-after-ms": "300"}, 90.0),
        ({"Retry-After": "0.3"}, 90.0),
        ({"Retry-After": "in two seconds"}, 0.3),
        ({"Retry-After": "0"}, 0.3),
        ({"retry-after-ms": "0"}, 0.3),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.3),
        ({}, 0.3),
    ],
)
def test_the_server_says_when_and_where_it_does_not_the_pause_is_ours(
    headers: dict[str, str], backoff: float, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    waits = {"backoff": backoff, "longest_backoff": backoff}
    with chat_server(first_then(Response(status=429, headers=headers))) as server:
        outcome, _ = run(candidates[:1], server, judge, tmp_path / "j.jsonl", **waits)
    assert len(outcome.accepted) == 1
    assert 0.2 <= server.seen[1].at - server.seen[0].at < 60


def test_a_date_is_a_way_to_say_when_too(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    def script(_: str, before: int) -> Response:
        later = {"Retry-After": formatdate(time.time() + 2, usegmt=True)}  # whole seconds: one to two from now
        return Response() if before else Response(status=503, headers=later)

    with chat_server(script) as server:
        run(candidates[:1], server, judge, tmp_path / "j.jsonl")
    assert server.seen[1].at - server.seen[0].at >= 0.8


def test_rate_limits_are_no_failures_of_a_request(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    script = first_then(*[Response(status=429, headers={"retry-after-ms": "5"})] * 12)
    with chat_server(script) as server:
        outcome, asker = run(candidates[:2], server, judge, tmp_path / "j.jsonl", retries=1)
        assert len(outcome.accepted) == 2
        assert asker.waits == {"429 Too Many Requests": 12}
        server.script = lambda *_: Response(status=429, headers={"retry-after-ms": "1"})
        outcome, _ = run(candidates[2:3], server, judge, tmp_path / "j.jsonl", retries=1)
    assert outcome.set_aside[0].reason == "not answered: 429 Too Many Requests, 100 times"


def test_an_endpoint_that_wants_hours_ends_the_run(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    script = first_then(Response(status=429, headers={"Retry-After": "86400"}))
    with chat_server(script) as server, pytest.raises(EndpointError, match=r"asks to wait 24\.0 hours"):
        run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))


BROKEN = {
    "500": Response(status=500),
    "529": Response(status=529),
    "stall": Response(stall=4.0),
    "stall in the body": Response(stall_body=4.0),
    "cut connection": Response(cut=True),
    "half of the JSON": Response(body=b'{"id": "x", "choices": [{"mess'),
    "a page of a proxy": Response(body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
    "JSON of something else": Response(body=b'{"hello": 1}'),
    "no choices": Response(body=b'{"choices": []}'),
    "choices that are no list": Response(body=b'{"choices": {"a": 1}}'),
    "choices of another type": Response(body=b'{"choices": [{"message": {"content": [1]}, "finish_reason": 3}]}'),
    "null": Response(body=b"null"),
    "an empty body": Response(body=b""),
    "too deep": Response(body=b"[" * 200_000),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_breaks_is_asked_again(name: str, candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server(first_then(BROKEN[name], BROKEN[name])) as server:
        outcome, asker = run(candidates[:2], server, judge, tmp_path / "j.jsonl", timeout=1.5)
    assert len(outcome.accepted) == 2
    assert not outcome.set_aside
    assert sum(asker.waits.values()) == 2
    assert server.asked == {"text 0": 3, "text 1": 1}
    assert outcome.asked == 2  # what came to nothing is not in the journal


def test_a_server_that_drips_is_given_up(
    candidates: list[Candidate], judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("declip_training.i2t.endpoint._TIMEOUTS_A_REQUEST", 2)
    with chat_server(first_then(Response(drip=0.1))) as server:
        outcome, asker = run(candidates[:2], server, judge, tmp_path / "j.jsonl", timeout=1.0)
    assert len(outcome.accepted) == 2
    assert asker.waits == {"no end in 2 s": 1}


@pytest.mark.parametrize("error", ['{"message": "no such\\nmodel.", "code": 404}', '"no such model"'])
def test_an_error_that_comes_as_a_success_is_told(
    error: str, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server(lambda *_: Response(body=f'{{"error": {error}}}'.encode())) as server:
        outcome, _ = run(candidates[:1], server, judge, tmp_path / "j.jsonl", retries=1)
    assert outcome.set_aside[0].reason == "not answered: broken reply (no such model), 2 times"


def test_what_always_breaks_is_set_aside_and_the_others_are_not(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server(lambda text, _: Response(status=500 if text == "text 0" else 200)) as server:
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl", retries=2)
        assert server.asked["text 0"] == 3
        assert [(s.candidate.source_text, s.final) for s in outcome.set_aside] == [("text 0", False)]
        assert outcome.set_aside[0].reason == "not answered: 500 Internal Server Error: told so by the test, 3 times"
        assert len(outcome.accepted) == 5
        server.script = lambda *_: Response()  # it is mended
        again, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert (again.asked, len(again.accepted)) == (1, 6)


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_refusal_is_not_asked_again(status: int, candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server() as server:
        server.script = lambda text, _: Response(status=status, text="policy") if text == "text 0" else Response()
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert server.asked["text 0"] == 1
    assert [s.reason.endswith(": policy") for s in outcome.set_aside] == [True]
    assert len(outcome.accepted) == 5


def test_when_all_are_refused_the_run_stops(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    many = [replace(c, id=f"{c.id}{n}", source_text=f"{c.source_text}{n}") for c in candidates for n in range(4)]
    with chat_server(lambda *_: Response(status=400, text="unknown field response_format")) as server:
        outcome, _ = run(many, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=2))
        assert len(server.seen) in (7, 8)  # the other worker may be under way
        assert outcome.stopped == "refused: 400 Bad Request: unknown field response_format"
        outcome, _ = run(many[:5], server, judge, tmp_path / "k.jsonl", RelabelOptions(workers=2))
        assert outcome.stopped == "refused: 400 Bad Request: unknown field response_format", "fewer, but all of them"


def test_what_was_refused_keeps_nobody_from_going_on(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    """A run that is stopped meets the old refusals first, as what was answered is not asked again."""
    many = [replace(c, id=f"{c.id}{n}", source_text=f"text {c.id}{n}") for c in candidates for n in range(10)]
    refused = {c.source_text for c in many[:40:2]}
    options = RelabelOptions(workers=1)
    with chat_server(lambda text, _: Response(status=400 if text in refused else 200)) as server:
        outcome, _ = run(many[:40], server, judge, tmp_path / "j.jsonl", options)
        assert (len(outcome.accepted), outcome.stopped) == (20, None)
        begun = len(server.seen)
        outcome, _ = run(many, server, judge, tmp_path / "j.jsonl", options)
        assert outcome.stopped is None
        assert (len(outcome.accepted), len(outcome.unanswered()), outcome.asked) == (40, 20, 20)
        asked = server.texts()[begun:]
        assert set(asked[:20]).isdisjoint(refused), "those that were never asked come first"
        server.script = lambda *_: Response()
        outcome, _ = run(many, server, judge, tmp_path / "j.jsonl", options)
        assert len(outcome.accepted) == 60


def test_a_dead_endpoint_ends_the_run_whoever_was_refused_before(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    many = [replace(c, id=f"{c.id}{n}", source_text=f"{c.source_text}{n}") for c in candidates for n in range(4)]
    once = {"retries": 0, "backoff": 0.0}
    with chat_server(lambda *_: Response(status=400)) as server:
        for part in (many[n : n + 4] for n in range(0, 24, 4)):
            run(part, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
        begun, server.script = len(server.seen), lambda *_: Response(status=503)
        outcome, _ = run(many, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1), **once)
    assert begun == 24
    assert len(server.seen) - begun == 6
    assert outcome.stopped is not None
    assert "503" in outcome.stopped


def test_the_reason_of_a_stop_is_the_endpoints(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    Path(candidates[5].image).write_bytes(b"broken")
    with chat_server(lambda *_: Response(status=400, text="no images here")) as server:
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
    assert outcome.stopped == "refused: 400 Bad Request: no images here"


def test_a_reply_to_another_image_does_not_count(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server() as server:
        run(candidates, server, judge, tmp_path / "j.jsonl")
        save_image(Path(candidates[2].image), 99)
        begun = len(server.seen)
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
        assert server.texts()[begun:] == [candidates[2].source_text]
        assert len(outcome.accepted) == 6
        assert outcome.accepted[candidates[2].id][1] == file_sha256(Path(candidates[2].image))
        with Journal(tmp_path / "j.jsonl", SETTINGS) as journal:
            kept, replaced = present(candidates, journal.replies)
            assert ([len(kept[c.id]) for c in candidates], replaced) == ([1] * 6, 0), "it has been asked about again"
            save_image(Path(candidates[0].image), 98)
            kept, replaced = present(candidates, journal.replies)
        assert (len(kept[candidates[0].id]), replaced) == (0, 1)


def test_what_is_answered_stays_while_images_are_away(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    """A table that is written again is not the shorter for it."""
    with chat_server() as server:
        run(candidates, server, judge, tmp_path / "j.jsonl")
        for candidate in candidates[:3]:
            Path(candidate.image).unlink()
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert (len(outcome.accepted), outcome.asked) == (6, 0)


def test_an_image_that_is_away_is_asked_for_when_it_is_back(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    """As one on a disk that was not mounted."""
    away = Path(candidates[1].image).rename(tmp_path / "away.jpg")
    with chat_server() as server:
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
        (missing,) = outcome.unanswered()
        assert (missing.candidate.id, missing.final) == (candidates[1].id, False)
        away.rename(candidates[1].image)
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert (len(outcome.accepted), outcome.asked) == (6, 1)


def test_what_is_sent_back_is_not_the_whole_of_a_runaway_reply(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server(first_then(Response(text="<think>" + "hm " * 9000 + "</think>" + "la " * 90_000))) as server:
        outcome, _ = run(candidates[:1], server, judge, tmp_path / "j.jsonl")
    assert len(outcome.accepted) == 1
    _, said, _ = server.seen[1].body["messages"]
    assert said["content"] == ("la " * 90_000)[:4000]


def test_content_in_parts_is_a_reply(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    whole = reply_text()
    parts = [{"type": "text", "text": whole[:50]}, {"type": "text", "text": whole[50:]}]
    message = {"role": "assistant", "content": parts}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": {"odd": 1}}]}).encode()
    with chat_server(lambda *_: Response(body=body)) as server:
        outcome, asker = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert (len(outcome.accepted), len(server.seen), asker.waits.total()) == (6, 6, 0)


def test_a_long_wait_is_told(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    told: list[str] = []
    stop = threading.Event()
    with chat_server(lambda *_: Response(status=429, headers={"Retry-After": "3000"})) as server:
        asker = Endpoint(EndpointOptions(server.url, "m"), stop, lambda line: (told.append(line), stop.set()))
        with Journal(tmp_path / "j.jsonl", SETTINGS) as journal:
            relabel(candidates, asker, stop, Prompt.read(), judge, journal, RelabelOptions(workers=3))
    assert told == ["the endpoint asks to wait 3000 s"]


def test_only_what_the_endpoint_asks_for_is_told() -> None:
    told: list[str] = []
    asker = Endpoint(EndpointOptions("http://127.0.0.1:9/v1", "m"), threading.Event(), told.append)
    asker._close_the_gate(1.0, asked=True)
    asker._close_the_gate(600.0, asked=False)
    asker._close_the_gate(600.0, asked=True)
    asker._close_the_gate(601.0, asked=True)
    assert told == ["the endpoint asks to wait 600 s"]


def test_failures_that_are_not_in_a_row_do_not_stop_it(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    many = [replace(c, id=f"{c.id}{n}", source_text=f"{c.source_text}{n}") for c in candidates for n in range(2)]
    with chat_server(lambda text, _: Response(status=400 if text.endswith("0") else 200)) as server:
        outcome, _ = run(many, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
    assert outcome.stopped is None
    assert (len(outcome.accepted), len(outcome.set_aside)) == (6, 6)


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_wrong_key_or_model_ends_the_run_at_once(
    status: int, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    message = "no such model. Check the address, the model 'm', the key"
    with chat_server(lambda *_: Response(status=status, text="no such model")) as server:
        with pytest.raises(EndpointError) as raised:
            run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
        assert message in str(raised.value)
    assert len(server.seen) == 1


def test_a_budget_that_is_used_up_ends_the_run(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    body = b'{"error": {"message": "quota", "code": "insufficient_quota"}}'
    with chat_server(lambda *_: Response(status=429, body=body)) as server, pytest.raises(EndpointError, match="quota"):
        run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))


def test_nobody_listening(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server() as server:
        pass
    outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1), retries=1)
    assert outcome.stopped is not None
    assert "connection failed" in outcome.stopped
    assert "2 times" in outcome.stopped


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "http://",
        "http:///v1",
        "http://localhost:abc/v1",
        "http://localhost:99999/v1",
        "http://[::1/v1",
        "http://local\nhost/v1",
    ],
)
def test_what_is_no_address_says_so(address: str) -> None:
    with pytest.raises(TrainingError, match=f"{re.escape(repr(address))} is no address. Give one such as"):
        Endpoint(EndpointOptions(address, "m"), threading.Event())


SPANISH = "La foto es nítida y está bien iluminada, con luz suave y cálida, colores apagados y composición equilibrada."
COUPLED = "A brown dog with sharp eyes runs on green grass in soft light with a blurred background."
UNACCEPTABLE = {
    "no JSON": ("Sorry, I cannot do that.", "no JSON object in the reply"),
    "two objects": (reply_text() + reply_text(), "2 JSON objects in the reply instead of one"),
    "other keys": ('{"perceptual": "a", "content": "b"}', "the keys are 'perceptual', 'content' instead"),
    "wrong language": (reply_text(perceptual=SPANISH), "the perceptual text is not English"),
    "wrong script": (
        reply_text(semantic="一只棕色的狗在湖边的草地上奔跑。"),
        "the semantic text is not written in Latin",
    ),
    "coupled perceptual": (reply_text(perceptual=COUPLED), "the perceptual text is 36% semantic"),
    "coupled semantic": (reply_text(semantic=PERCEPTUAL), "the semantic text is 94% perceptual"),
    "empty": ('{"perceptual": " ", "semantic": "A dog."}', "the perceptual text is empty"),
    "too long": (reply_text(semantic=f"{SEMANTIC} " * 5), "the semantic text has 90 words, more than 60"),
}


@pytest.mark.parametrize("name", list(UNACCEPTABLE))
def test_a_reply_that_is_not_acceptable_is_asked_again_with_the_reason_then_set_aside(
    name: str, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    bad, reason = UNACCEPTABLE[name]
    with chat_server(first_then(Response(bad))) as server:
        outcome, _ = run(candidates[:2], server, judge, tmp_path / "1.jsonl")
    assert len(outcome.accepted) == 2
    assert outcome.asked == 3
    second = next(s.body["messages"] for s in server.seen if len(s.body["messages"]) > 1)
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == bad
    assert reason in second[2]["content"]

    with chat_server(lambda text, _: Response(bad if text == "text 0" else reply_text())) as server:
        outcome, _ = run(candidates[:2], server, judge, tmp_path / "2.jsonl", RelabelOptions(attempts=2))
        assert server.asked == {"text 0": 2, "text 1": 1}
        assert [s.reason.startswith(reason) for s in outcome.set_aside] == [True]
        assert (outcome.set_aside[0].attempts, outcome.set_aside[0].reply, outcome.set_aside[0].final) == (2, bad, True)
        again, _ = run(candidates[:2], server, judge, tmp_path / "2.jsonl", RelabelOptions(attempts=2))
    assert again.asked == 0  # paid for already
    assert again.set_aside == outcome.set_aside
    assert again.accepted == outcome.accepted


def test_half_a_character_in_a_reply_does_not_end_the_asking(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    """No request can hold what the first reply does."""
    with chat_server(first_then(Response('{"perceptual": "\ud83d", "semantic": "A dog."}'))) as server:
        outcome, asker = run(candidates[:1], server, judge, tmp_path / "j.jsonl")
    assert len(outcome.accepted) == 1
    assert not asker.waits
    assert server.seen[1].body["messages"][1]["content"] == '{"perceptual": "?", "semantic": "A dog."}'


def test_a_reply_cut_off_at_the_token_limit_says_so(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server(lambda *_: Response('{"perceptual": "The im', finish="length")) as server:
        outcome, _ = run(candidates[:1], server, judge, tmp_path / "j.jsonl", RelabelOptions(attempts=1))
    assert outcome.set_aside[0].reason == (
        "no JSON object in the reply (cut off at its limit of tokens, which --max-tokens raises)"
    )


def test_a_limit_of_tokens_is_sent_by_the_name_that_the_server_knows(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    def script(text: str, before: int) -> Response:
        if "max_tokens" in server.seen[-1].body:
            return Response("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", status=400)
        return Response()

    one = RelabelOptions(workers=1)
    with chat_server() as server:
        run(candidates, server, judge, tmp_path / "a.jsonl", one)
        assert {seen.body["max_tokens"] for seen in server.seen} == {1024}
    with chat_server() as server:
        run(candidates, server, judge, tmp_path / "b.jsonl", one, extra={"max_completion_tokens": 7})
        assert [(s.body["max_completion_tokens"], "max_tokens" in s.body) for s in server.seen] == [(7, False)] * 6
    with chat_server() as server:
        server.script = script
        outcome, asker = run(candidates, server, judge, tmp_path / "c.jsonl", one, max_tokens=99)
        assert (len(outcome.accepted), len(server.seen), len(asker.waits)) == (6, 7, 0)
        assert server.seen[-1].body["max_completion_tokens"] == 99


def test_a_model_that_never_answers_as_asked_is_not_paid_for_all_images(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    many = [replace(candidates[0], id=f"{n}", source_text=f"text {n}") for n in range(40)]
    one = RelabelOptions(workers=1, attempts=2)
    with chat_server(lambda *_: Response("I cannot tell.")) as server:
        outcome, _ = run(many, server, judge, tmp_path / "a.jsonl", one)
        assert len(server.seen) == 40  # twice for each of twenty
    assert outcome.stopped is not None
    assert "none of the first 20 images" in outcome.stopped
    assert "no JSON object in the reply" in outcome.stopped
    with chat_server(lambda text, _: Response() if text == "text 3" else Response("I cannot tell.")) as server:
        outcome, _ = run(many, server, judge, tmp_path / "b.jsonl", one)
    assert (outcome.stopped, len(outcome.accepted), len(outcome.set_aside)) == (None, 1, 39)


def thinking(field: str, thought: str, content: str | None) -> Response:
    message = {"role": "assistant", "content": content, field: thought}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Response(body=json.dumps(whole).encode())


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("content", ["", None, " \n"])
def test_a_model_that_only_thinks_is_asked_again_another_day(
    field: str, content: str | None, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server(lambda *_: thinking(field, f"Perhaps {reply_text()}, or", content)) as server:
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
        assert len(server.seen) == 6  # each once: who thinks so long does so again
    assert outcome.stopped is not None
    assert "enable_thinking" in outcome.stopped
    assert "enable_thinking" in next(iter(outcome.reasons())), "the advice is no name to be left out"
    assert not outcome.asked
    with chat_server() as server:  # with other options all are asked, as nothing was answered
        again, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert (len(again.accepted), again.asked) == (6, 6)


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_an_answer_that_a_server_takes_for_a_thought_counts(
    content: str | None, candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    with chat_server(lambda *_: thinking("reasoning_content", f"\n{reply_text()}\n", content)) as server:
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert len(outcome.accepted) == 6


def test_empty_replies_in_the_journal_of_an_older_version_are_no_attempts(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    sha256 = file_sha256(Path(candidates[0].image))
    empty = {"id": candidates[0].id, "text": "", "finish": "length", "image_sha256": sha256}
    lines = [{"journal": 1, **SETTINGS}, *[{**empty, "tokens_in": 0, "tokens_out": 9, "seconds": 1.0}] * 3]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with chat_server() as server:
        outcome, _ = run(candidates[:1], server, judge, tmp_path / "j.jsonl")
    assert len(outcome.accepted) == 1


def test_an_image_that_cannot_be_opened_costs_nothing(
    candidates: list[Candidate], judge: Judge, tmp_path: Path
) -> None:
    Path(candidates[0].image).write_bytes(b"no picture")
    Path(candidates[1].image).unlink()
    with chat_server() as server:
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert sorted(server.texts()) == [f"text {n}" for n in range(2, 6)]
    assert {s.candidate.source_text for s in outcome.set_aside} == {"text 0", "text 1"}
    assert len(outcome.accepted) == 4


def test_workers_ask_at_the_same_time(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server(lambda *_: Response(stall=0.3)) as server:
        run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=6))
    assert server.most_at_once >= 3


def test_other_limits_judge_the_same_replies_anew(candidates: list[Candidate], judge: Judge, tmp_path: Path) -> None:
    with chat_server() as server:
        run(candidates, server, judge, tmp_path / "j.jsonl")
        strict = Judge(judge.vocabularies, judge.limits, max_words=10)
        refused, _ = run(candidates, server, strict, tmp_path / "j.jsonl", RelabelOptions(attempts=1))
        assert len(refused.set_aside) == 6
        back, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert len(back.accepted) == 6
    assert len(server.seen) == 6


def test_a_full_disk_stops_the_run_and_the_journal_stays_whole(
    candidates: list[Candidate], judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with chat_server() as server:
        with pytest.raises(OSError, match="No space left"):
            run(candidates, server, judge, tmp_path / "j.jsonl", RelabelOptions(workers=1))
        lines = (tmp_path / "j.jsonl").read_bytes()
        assert lines.endswith(b"\n")
        assert lines.count(b"\n") == 2  # the head and one reply
        outcome, _ = run(candidates, server, judge, tmp_path / "j.jsonl")
    assert outcome.asked == 5
