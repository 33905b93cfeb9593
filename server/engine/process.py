"""The engine's own process: `python -m server.engine FD`, FD one end of a socket pair.

Importing what the engine needs takes seconds; it begins before anything is told. Then there are
three threads: a reader that queues what arrives, the step loop, a writer that serialises what
leaves. When the other end closes, for whatever reason, the process ends at once: it never
outlives the API process.
"""

import gc
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from adapters_store.blob_place import BlobPlace
from adapters_store.errors import AdapterdError, EngineStartFailed
from server.adapters.loader_process import LoaderProcess, sendable
from server.engine.engine import Engine
from server.engine.messages import (
    Abort,
    Failed,
    FromEngine,
    Pin,
    Prefetch,
    Ready,
    Shutdown,
    Start,
    Stats,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
    Unpin,
)
from server.engine.wire import FROM_ENGINE, HEADER, TO_ENGINE

STATS_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


class Channel:
    """The socket's two directions, each with a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._outbox: queue.SimpleQueue[FromEngine | None] = queue.SimpleQueue()
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="engine-reader", daemon=True).start()

    def send(self, message: FromEngine) -> None:
        self._outbox.put(message)

    def close(self) -> None:
        """Sends what is queued, then no more."""
        self._outbox.put(None)
        self._writer.join(timeout=5)

    def _read(self) -> None:
        stream = self._sock.makefile("rb")
        while header := stream.read(HEADER.size):
            length, kind = HEADER.unpack(header)
            self.inbox.put(TO_ENGINE.message(kind, stream.read(length)))
        # The API process is gone, and nobody is left to answer to.
        os._exit(0)

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._sock.sendall(FROM_ENGINE.frame(message))
            except OSError:
                os._exit(0)


def main(descriptor: int) -> int:
    """Serves one engine over the socket until told to stop. Returns the exit status."""
    logging.basicConfig(format="%(asctime)s %(levelname)s engine: %(message)s")
    channel = Channel(socket.socket(fileno=descriptor))
    start = channel.inbox.get()
    if not isinstance(start, Start):
        raise TypeError(f"the first message must be Start, not {type(start).__name__}")
    config = start.config
    place = BlobPlace(config.blobs, config.blob_cache, config.blob_cache_bytes)
    try:
        source = LoaderProcess(place).open if sendable() else place.reader()
        engine = Engine(config, source, on_progress=channel.send)
    except AdapterdError as error:
        channel.send(Failed(None, error.code, error.message, error.param))
        channel.close()
        return 1
    except MemoryError as error:
        message = f"not enough memory to load the base: {error}"
        channel.send(Failed(None, EngineStartFailed.code, message))
        channel.close()
        return 1
    # What is there now stays: a full collection would look at all of it, for 150 ms of a step.
    gc.freeze()
    gc.enable()
    channel.send(Ready(engine.info))
    _serve(engine, channel)
    engine.close()
    channel.close()
    return 0


def _serve(engine: Engine, channel: Channel) -> None:
    """The step loop. Between steps it takes in all that has arrived."""
    sent = Stats()
    due_s = 0.0
    while True:
        for message in _arrived(channel, 0.0 if engine.has_work() else engine.idle_s()):
            if isinstance(message, Shutdown):
                return
            _take(engine, channel, message)
        events = engine.step() if engine.has_work() else []
        tokens = tuple(event for event in events if isinstance(event, TokenEvent))
        if tokens:
            channel.send(Tokens(tokens))
        for event in events:
            if isinstance(event, Failed):
                channel.send(event)
        replies = engine.replies()
        now = time.monotonic()
        if now >= due_s or replies or not engine.has_work():
            due_s = now + STATS_INTERVAL_S
            stats = engine.stats()
            if stats != sent:
                channel.send(stats)
                sent = stats
        for reply in replies:  # after the stats that show what was done
            channel.send(reply)


def _arrived(channel: Channel, wait_s: float | None) -> list[ToEngine]:
    """All that is there, waiting for the first so long; None: for ever."""
    messages: list[ToEngine] = []
    if wait_s != 0.0:
        with suppress(queue.Empty):
            messages.append(channel.inbox.get(timeout=wait_s))
    while not channel.inbox.empty():
        messages.append(channel.inbox.get())
    return messages


def _take(engine: Engine, channel: Channel, message: ToEngine) -> None:
    if isinstance(message, Submit):
        with _told(channel, message.request.id):
            engine.submit(message.request)
    elif isinstance(message, Abort):
        engine.abort(message.request_id, message.index)
    elif isinstance(message, Prefetch | Pin | Unpin):
        with _told(channel, message.request_id):
            engine.arrange(message)


@contextmanager
def _told(channel: Channel, request_id: str) -> Iterator[None]:
    """Sends what is raised within to who asked."""
    try:
        yield
    except AdapterdError as error:
        channel.send(Failed(request_id, error.code, error.message, error.param))
