"""A real HTTP server on a free port that gives canned answers and keeps what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    body: Any = None  # bytes as they are; anything else as JSON
    status: int = 200
    kind: str = "application/json"


@dataclass
class FakeServer:
    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)  # "GET /v1/models" → answer
    asked: list[tuple[str, bytes]] = field(default_factory=list)  # ("GET /path?query", body)


def events(*chunks: Any) -> Answer:
    """Server-sent events as completions stream them."""
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return Answer("".join(f"data: {line}\n\n" for line in lines).encode(), kind="text/event-stream")


def error(message: str, status: int, *, param: str | None = None, code: str = "x") -> Answer:
    body = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Answer({"error": body}, status)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked = f"{self.command} {self.path}"
            fake.asked.append((asked, body))
            answer = fake.answers.get(asked) or fake.answers.get(asked.partition("?")[0])
            answer = answer or error(f"no canned answer for {asked}", 404)
            sent = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body)
            payload = sent if isinstance(sent, bytes) else sent.encode()
            self.send_response(answer.status)
            self.send_header("content-type", answer.kind)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
