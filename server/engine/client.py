"""The API process's side of the engine: starts its process, talks to it, starts it again.

Asyncio only; nothing here blocks the loop, and nothing here imports torch.
"""

import asyncio
import logging
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Literal

from adapters_store.errors import (
    AdapterdError,
    EngineStartFailed,
    EngineUnavailable,
    Unavailable,
    error_from_code,
)
from server.child_process import Child, start_engine
from server.engine.messages import (
    Abort,
    Done,
    EngineConfig,
    EngineInfo,
    Failed,
    FromEngine,
    GenerationRequest,
    LoadProgress,
    Pin,
    Prefetch,
    Ready,
    Shutdown,
    SlotLevel,
    Start,
    Stats,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
    Unpin,
)
from server.engine.wire import FROM_ENGINE, HEADER, TO_ENGINE

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]

STOP_GRACE_S = 5.0
MAX_BACKOFF_S = 30.0
PIN_RETRY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """A request that has not ended: where its events go, and which of its sequences still run."""

    running: set[int]
    events: asyncio.Queue[tuple[TokenEvent, ...] | AdapterdError] = field(
        default_factory=asyncio.Queue
    )


class EngineClient:
    """Owns one engine process.

    Must stay true: every open request ends, by its last event or by an error, also when the
    engine dies; at most one engine process runs; what was pinned in one is pinned in the next.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        started: Child | None = None,
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        """`started` becomes the first engine, and is the caller's to close at the end."""
        self._config = config
        self._started = started
        self._on_progress = on_progress or (lambda _: None)
        self._state: EngineState = "starting"
        self._info: EngineInfo | None = None
        self._stats = Stats()
        self._open: dict[str, _Open] = {}
        self._asked: dict[str, asyncio.Future[None]] = {}  # prefetches, pins, unpins under way
        self._pins: dict[str, float | None] = {}  # digest → when it ends, on the monotonic clock
        self._pinning: asyncio.Task[None] | None = None  # again, after a restart
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo:
        """Of the last engine that was ready. Raises EngineUnavailable before the first."""
        if self._info is None:
            raise EngineUnavailable("the engine has not started yet; try again in a moment")
        return self._info

    @property
    def stats(self) -> Stats:
        """The latest that the engine sent; all zero while there is none."""
        return self._stats

    @property
    def pid(self) -> int | None:
        """Of the engine process that runs now."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    async def start(self) -> EngineInfo:
        """Starts the engine and waits until it can serve. Raises EngineStartFailed."""
        reader = await self._spawn()
        try:
            info = await self._until_ready(reader)
        except EngineStartFailed:
            self._state = "failed"
            await self._reap()
            raise
        self._keeper = asyncio.create_task(self._keep(reader), name="engine-keeper")
        return info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[TokenEvent, ...]]:
        """The request's events, step by step, until all of its sequences have ended.

        Closing the generator aborts the request. Raises EngineUnavailable when the engine is not
        there or dies, AdapterNotFound, AdapterLoadFailed, StoreCorrupt, Unavailable (the adapter's
        files cannot be reached), EngineFailed, InvalidRequest.
        """
        self._require_ready()
        entry = _Open(running=set(range(request.n)))
        self._open[request.id] = entry
        try:
            self._post(Submit(request))
            while entry.running:
                events = await entry.events.get()
                if isinstance(events, AdapterdError):
                    entry.running.clear()
                    raise events
                entry.running -= {event.index for event in events if event.finish_reason}
                yield events
        finally:
            del self._open[request.id]
            if entry.running and self._state == "ready":
                self._post(Abort(request.id))

    def drop(self, request_id: str, index: int) -> None:
        """Ends one of an open request's sequences; the others go on."""
        entry = self._open.get(request_id)
        if entry is not None and index in entry.running:
            entry.running.discard(index)
            self._post(Abort(request_id, index))

    async def prefetch(self, digest: str, to: SlotLevel = "slot") -> None:
        """Returns once `digest` is in that tier or a nearer one; `stats` show it.

        Raises EngineUnavailable, Unavailable if no slot can be had now, and what a load that
        failed raised: AdapterNotFound, AdapterLoadFailed, StoreCorrupt.
        """
        await self._ask(Prefetch(uuid.uuid4().hex, digest, to))

    async def pin(self, digest: str, ttl_s: float | None = None) -> None:
        """Returns once `digest` is in a slot, to stay there so long (None: until `unpin`).

        Raises Conflict if no slot would be left for others, and as `prefetch` does.
        """
        await self._ask(Pin(uuid.uuid4().hex, digest, ttl_s))
        self._pins[digest] = None if ttl_s is None else time.monotonic() + ttl_s

    async def unpin(self, digest: str) -> None:
        """Returns once `digest` is not pinned. Raises EngineUnavailable if the engine dies."""
        self._pins.pop(digest, None)
        if self._state == "ready":  # else the next engine begins without it
            await self._ask(Unpin(uuid.uuid4().hex, digest))

    async def stop(self) -> None:
        """Ends the engine; requests that are still open end with EngineUnavailable."""
        self._state = "stopped"
        if self._writer is not None:
            self._post(Shutdown())
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._pinning is not None:
            self._pinning.cancel()
        self._end_all("the server is stopping")  # not after the wait: they are over either way
        await self._reap()

    async def _spawn(self) -> asyncio.StreamReader:
        child, self._started = self._started or start_engine(), None
        self._process = child.process
        reader, self._writer = await asyncio.open_connection(sock=child.socket)
        self._post(Start(self._config))
        return reader

    async def _until_ready(self, reader: asyncio.StreamReader) -> EngineInfo:
        while True:
            message = await _receive(reader)
            if isinstance(message, LoadProgress):
                self._on_progress(message)
            elif isinstance(message, Ready):
                self._info = message.info
                self._state = "ready"
                return message.info
            elif isinstance(message, Failed):
                raise EngineStartFailed(message.message, param=message.param)
            elif message is None:
                raise EngineStartFailed(
                    "the engine's process ended while it loaded the base; its last lines above "
                    "say why (out of memory, if there are none)"
                )

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Hands messages on; when the engine dies, ends its requests and starts another."""
        while True:
            while (message := await _receive(reader)) is not None:
                self._dispatch(message)
            self._state = "restarting"
            self._stats = Stats()
            await self._reap()
            logger.error("the engine died with %d requests open; starting it", len(self._open))
            self._end_all("the engine died while it ran this request; it is being started again")
            reader = await self._respawn()
            self.restarts += 1
            if self._pinning is not None:
                self._pinning.cancel()
            self._pinning = asyncio.create_task(self._pin_all_again(), name="engine-pins")

    async def _respawn(self) -> asyncio.StreamReader:
        backoff_s = 0.5
        while True:
            reader = await self._spawn()
            try:
                await self._until_ready(reader)
            except EngineStartFailed as error:
                logger.error("the engine did not start: %s", error.message)
                await self._reap()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            else:
                return reader

    def _dispatch(self, message: FromEngine) -> None:
        if isinstance(message, Tokens):
            by_request: defaultdict[str, list[TokenEvent]] = defaultdict(list)
            for event in message.events:
                by_request[event.request_id].append(event)
            for request_id, events in by_request.items():
                if request_id in self._open:
                    self._open[request_id].events.put_nowait(tuple(events))
        elif isinstance(message, Failed) and message.request_id in self._open:
            error = error_from_code(message.code, message.message, message.param)
            self._open[message.request_id].events.put_nowait(error)
        elif isinstance(message, Failed) and message.request_id in self._asked:
            error = error_from_code(message.code, message.message, message.param)
            _settle(self._asked[message.request_id], error)
        elif isinstance(message, Done) and message.request_id in self._asked:
            _settle(self._asked[message.request_id])
        elif isinstance(message, Stats):
            self._stats = message

    def _end_all(self, why: str) -> None:
        for entry in self._open.values():
            entry.events.put_nowait(EngineUnavailable(why))
        for reply in self._asked.values():
            _settle(reply, EngineUnavailable(why))

    def _require_ready(self) -> None:
        if self._state != "ready":
            raise EngineUnavailable(f"the engine is {self._state}; try again in a few seconds")

    async def _ask(self, wish: Prefetch | Pin | Unpin) -> None:
        """Returns once it is done. Raises EngineUnavailable, and what the engine answers."""
        self._require_ready()
        self._asked[wish.request_id] = reply = asyncio.get_running_loop().create_future()
        try:
            self._post(wish)
            await reply
        finally:
            del self._asked[wish.request_id]

    async def _pin_all_again(self) -> None:
        await asyncio.gather(*map(self._pin_again, tuple(self._pins)))

    async def _pin_again(self, digest: str) -> None:
        """In an engine that has just started, for the time that is left, if there is any."""
        while digest in self._pins:
            end = self._pins[digest]
            left_s = None if end is None else end - time.monotonic()
            if left_s is not None and left_s <= 0:
                self._pins.pop(digest)
                return
            try:
                return await self._ask(Pin(uuid.uuid4().hex, digest, left_s))
            except EngineUnavailable:
                return  # the next one to start is asked again
            except Unavailable:
                await asyncio.sleep(PIN_RETRY_S)  # requests were faster, and have every slot
            except AdapterdError as error:
                logger.error("adapter %s is pinned no more: %s", digest[:12], error)
                self._pins.pop(digest, None)

    def _post(self, message: ToEngine) -> None:
        """Queues a message; a closed connection is noticed by the reader."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(TO_ENGINE.frame(message))

    async def _reap(self) -> None:
        """Waits for the process to be gone, killing it if it takes too long."""
        if self._process is None:
            return
        try:
            await asyncio.to_thread(self._process.wait, STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _settle(reply: asyncio.Future[None], error: AdapterdError | None = None) -> None:
    """Unless whoever asked has gone, or has been told."""
    if reply.done():
        return
    if error is None:
        reply.set_result(None)
    else:
        reply.set_exception(error)


async def _receive(reader: asyncio.StreamReader) -> FromEngine | None:
    """The next message, or None when the engine is gone."""
    try:
        length, kind = HEADER.unpack(await reader.readexactly(HEADER.size))
        return FROM_ENGINE.message(kind, await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
