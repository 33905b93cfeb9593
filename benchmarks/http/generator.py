"""`python -m benchmarks.http.generator URL`: loads a server, in a process of its own.

Reads a Load per line and answers each with a Outcome line. While a load is on it does as little as
it can, for it shares the machine with what it measures: it writes requests and keeps bytes.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from benchmarks.http.load import Ask, Load
from benchmarks.http.replies import BadReply, Piece, Reply, request_of, token_times


@dataclass(frozen=True, slots=True)
class Outcome:
    """Replies in order of the asks; a failed one is None, and has a line in `failures`."""

    replies: tuple[Reply | None, ...]
    failures: tuple[str, ...]
    seconds: float  # from the beginning to the last byte
    cpu_s: float  # of this process, in that time

    @property
    def complete(self) -> tuple[Reply, ...]:
        return tuple(reply for reply in self.replies if reply is not None)

    @property
    def tokens(self) -> int:
        return sum(len(reply.token_s) for reply in self.complete)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        fields = json.loads(text)
        replies = (
            None if one is None else Reply(one["due_s"], one["sent_s"], tuple(one["token_s"]))
            for one in fields["replies"]
        )
        return cls(tuple(replies), tuple(fields["failures"]), fields["seconds"], fields["cpu_s"])


class Connection(asyncio.Protocol):
    """Sends one request, keeps what comes back, and is done when the server closes."""

    def __init__(self, request: bytes, done: "asyncio.Future[None]") -> None:
        self._request = request
        self._done = done
        self.sent_s = 0.0
        self.events = 0  # about: one may be cut in two
        self.pieces: list[Piece] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.sent_s = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        self.events += data.count(b"data: ")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


class Generator:
    """One load on one server."""

    def __init__(self, host: str, port: int, load: Load) -> None:
        self._address = host, port
        self._load = load
        self._room = asyncio.Semaphore(load.at_once or len(load.asks))
        self._connections: list[Connection] = []
        self._began = 0.0

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        dones: list[asyncio.Future[None]] = [loop.create_future() for _ in self._load.asks]
        for ask, done in zip(self._load.asks, dones, strict=True):
            self._connections.append(Connection(self._request(ask), done))
        cpu = time.process_time()
        self._began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, ask in enumerate(self._load.asks):
                await self._due(ask, number)
                await self._room.acquire()
                tasks.create_task(self._one(self._connections[number], dones[number]))
        return self._outcome(time.perf_counter() - self._began, time.process_time() - cpu)

    async def _due(self, ask: Ask, number: int) -> None:
        await asyncio.sleep(max(0.0, self._began + ask.due_s - time.perf_counter()))
        earlier = self._connections[:number]
        while any(one.events < ask.after_events for one in earlier):
            await asyncio.sleep(0.005)

    async def _one(self, connection: Connection, done: "asyncio.Future[None]") -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, *self._address)
            await done
        except OSError:
            pass  # no bytes came: token_times says so
        finally:
            self._room.release()

    def _request(self, ask: Ask) -> bytes:
        body: dict[str, object] = {
            "model": ask.model,
            "prompt": ask.prompt,
            "max_tokens": ask.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return request_of(body, f"{self._address[0]}:{self._address[1]}")

    def _outcome(self, seconds: float, cpu_s: float) -> Outcome:
        replies: list[Reply | None] = []
        failures: list[str] = []
        for ask, one in zip(self._load.asks, self._connections, strict=True):
            sent_s = one.sent_s - self._began
            # In a closed loop, and after other streams, a request is due when it is sent.
            open_loop = self._load.at_once is None and not ask.after_events
            try:
                times = token_times(one.pieces, ask.new_tokens)
                moments = tuple(moment - self._began for moment in times)
                replies.append(Reply(ask.due_s if open_loop else sent_s, sent_s, moments))
            except BadReply as error:
                replies.append(None)
                failures.append(str(error))
        return Outcome(tuple(replies), tuple(failures), seconds, cpu_s)


def main(url: str) -> None:
    """Until standard input ends."""
    where = urlsplit(url)
    assert where.hostname is not None and where.port is not None
    for line in sys.stdin:
        generator = Generator(where.hostname, where.port, Load.from_json(line))
        print(asyncio.run(generator.run()).to_json(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
