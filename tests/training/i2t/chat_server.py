"""A chat-completions endpoint on loopback that misbehaves as told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PERCEPTUAL = (
    "The photo is sharp and well lit, with soft warm light, muted colours and a shallow depth of field; "
    "the composition is balanced and the mood is calm."
)
SEMANTIC = "A brown dog runs across a meadow beside a lake while two children watch from a wooden bench."


def reply_text(perceptual: str = PERCEPTUAL, semantic: str = SEMANTIC) -> str:
    """What a good model answers."""
    return json.dumps({"perceptual": perceptual, "semantic": semantic})


@dataclass
class Response:
    """One HTTP response: ``stall`` seconds before it, or before its body, ``drip`` seconds after each byte of the body,
    and ``cut`` after half of it.
    """

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stall: float = 0.0
    stall_body: float = 0.0
    drip: float = 0.0
    cut: bool = False
    finish: str = "stop"

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text or "told so by the test", "code": None}}).encode()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text if self.text is not None else reply_text()},
            "finish_reason": self.finish,
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
        return json.dumps(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        ).encode()


@dataclass
class Seen:
    """One request that arrived: when, its body, its headers, and the human text in it."""

    at: float
    body: dict[str, Any]
    headers: dict[str, str]
    text: str


class ChatServer:
    """Answers by ``script(human text, how often it was asked before)``; ``seen`` are the requests in their order."""

    def __init__(self, script: Callable[[str, int], Response]) -> None:
        self.seen: list[Seen] = []
        self.script = script
        self.asked: Counter[str] = Counter()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a client that gave up is part of the test
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def texts(self) -> list[str]:
        return [seen.text for seen in self.seen]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        prompt = next(part["text"] for part in question if part["type"] == "text")
        text = prompt.partition("<<<\n")[2].partition("\n>>>")[0]
        with self._lock:
            before = self.asked[text]
            self.asked[text] += 1
            self.seen.append(Seen(time.monotonic(), body, {k.lower(): v for k, v in handler.headers.items()}, text))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        response = self.script(text, before)
        time.sleep(response.stall)
        with self._lock:
            self._now -= 1
        content = response.content()
        handler.send_response(response.status)
        for name, value in {"Content-Type": "application/json", **response.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.flush()
        time.sleep(response.stall_body)
        if response.cut:
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        pieces = [content[i : i + 1] for i in range(len(content))] if response.drip else [content]
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(response.drip)


@contextmanager
def chat_server(script: Callable[[str, int], Response] = lambda *_: Response()) -> Iterator[ChatServer]:
    """A server that runs while the block does."""
    server = ChatServer(script)
    thread = threading.Thread(target=lambda: server._server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()
