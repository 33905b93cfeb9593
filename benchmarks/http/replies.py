"""A streamed reply as it came over the socket, and what it says of time.

Pieces of bytes are kept with the moment they came; what they mean is read afterwards, so that
reading costs nothing while a load is on. The protocol is h11's business, as it is uvicorn's.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import h11

Piece = tuple[float, bytes]  # seconds, bytes


class BadReply(Exception):
    """A request was refused, cut short, or answered with another number of tokens."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Seconds since the load's beginning; each token's as the client saw it."""

    due_s: float
    sent_s: float
    token_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """From when it was due: a generator that lags must not hide it."""
        return self.token_s[0] - self.due_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between one token and the next."""
        return tuple(b - a for a, b in zip(self.token_s, self.token_s[1:], strict=False))


def request_of(body: dict[str, object], host: str) -> bytes:
    """A POST of /v1/completions on a connection of its own."""
    data = json.dumps(body).encode()
    head = [
        "POST /v1/completions HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        f"content-length: {len(data)}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


def token_times(pieces: Sequence[Piece], wanted: int) -> tuple[float, ...]:
    """When each of the reply's `wanted` tokens came. Raises BadReply."""
    times: list[float] = []
    counted, ended = None, False
    for seconds, event in _events(pieces):
        if event == b"[DONE]":
            ended = True
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            raise BadReply(f"the stream ended with {chunk['error']}")
        times += [seconds] * len(chunk["choices"])
        counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
    if not ended or counted != wanted or len(times) != wanted:
        raise BadReply(
            f"{wanted} tokens were asked for; {len(times)} came, the usage says {counted}, and "
            f"the stream was {'complete' if ended else 'cut short'}"
        )
    return tuple(times)


def _events(pieces: Sequence[Piece]) -> Iterator[tuple[float, bytes]]:
    """Server-sent events, each with the moment that its last byte came."""
    rest = b""
    for seconds, data in _body(pieces):
        *events, rest = (rest + data).split(b"\n\n")
        yield from ((seconds, event.removeprefix(b"data: ")) for event in events)


def _body(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The reply's body without HTTP's framing. Raises BadReply unless its status is 200."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    status = None
    for seconds, data in pieces:
        connection.receive_data(data)
        while (event := _next(connection)) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data) and status != 200:
                raise BadReply(
                    f"status {status}: {bytes(event.data)[:300].decode(errors='replace')}"
                )
            elif isinstance(event, h11.Data):
                yield seconds, bytes(event.data)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
    raise BadReply(f"the connection closed early; status {status}")


def _next(connection: h11.Connection) -> object:
    """Raises BadReply."""
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadReply(f"this is no HTTP: {error}") from error
