"""What the routes stand on, handed to them in one frozen object; nothing is kept in modules.

Here: Services, ApiLimits, the Engine they expect, Admission. Not here: how any of it works inside.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, cast

from fastapi import Depends, Request

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel
from adapters_store.errors import Draining, EngineUnavailable, Overloaded
from adapters_store.sources import Sources
from adapters_store.store import AdapterStore
from server.api.job_counts import JobCounts
from server.api.reachability import Reachability
from server.api.text import TextCodec
from server.engine.messages import (
    EngineInfo,
    GenerationRequest,
    SlotLevel,
    Stats,
    TokenEvent,
)
from server.metrics import Metrics
from training.checkpoints import CheckpointShelf
from training.jobs import JobBook

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]
MAX_BULK = 2  # uploads and downloads at work at once

AdapterCheck = Callable[[AdapterContent, BaseModel], AdapterFacts]


class Engine(Protocol):
    """What the API needs of server.engine.client.EngineClient; a test's fake can meet it."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo:
        """Of the last start that succeeded; only once `state` has been "ready"."""
        ...

    @property
    def stats(self) -> Stats: ...

    @property
    def restarts(self) -> int: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[TokenEvent, ...]]:
        """Each step's events, until all n sequences have ended. Closing it aborts the request."""
        ...

    def drop(self, request_id: str, index: int) -> None:
        """Ends one of an open request's sequences; no more of its events are waited for."""
        ...

    async def prefetch(self, digest: str, to: SlotLevel = "slot") -> None:
        """Returns once it is in that tier or a nearer one, and `stats` say so."""
        ...

    async def pin(self, digest: str, ttl_s: float | None = None) -> None:
        """Returns once it is in a slot that it keeps so long, and `stats` say so."""
        ...

    async def unpin(self, digest: str) -> None:
        """Returns once it is not pinned, and `stats` say so."""
        ...


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """What one request, and all of them together, may ask for."""

    max_body_bytes: int = 4 << 20  # of JSON
    max_upload_bytes: int = 2 << 30  # of a multipart body
    max_upload_files: int = 64
    max_requests: int = 256  # completions and prefetches under way or waiting, over all clients
    max_choices: int = 128  # prompts x n of one request


class Admission:
    """Counts the completions and prefetches under way. Always true: 0 <= active <= max_requests.

    A place is taken before any work is done for a request and given back exactly once, by
    whatever way the request ends. Draining only shuts the door: those inside finish.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._active = 0
        self._draining = False

    @property
    def active(self) -> int:
        return self._active

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """From now on every new request is refused with Draining."""
        self._draining = True

    def check_open(self) -> None:
        """Raises Draining once the server is shutting down."""
        if self._draining:
            raise Draining("the server is shutting down; send this to another replica, or later")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds one place for the body of the `with`. Raises Draining, Overloaded."""
        self.check_open()
        if self._active >= self._max_requests:
            raise Overloaded(f"{self._active} requests are under way already; try again shortly")
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may use."""

    engine: Engine
    store: AdapterStore
    text: TextCodec
    base_name: str
    check: AdapterCheck
    limits: ApiLimits
    metrics: Metrics
    admission: Admission
    sources: Sources  # what load calls may read
    reachability: Reachability  # of the store and its catalog
    jobs: JobBook
    checkpoints: CheckpointShelf
    job_counts: JobCounts
    # Uploads and downloads take seconds in a thread; there are few threads, and completions need
    # one to resolve a name.
    bulk: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_BULK))
    started_at: int = field(default_factory=lambda: int(time.time()))  # Unix seconds

    def require_engine(self) -> EngineInfo:
        """What the engine knows of the base. Raises EngineUnavailable unless it is ready."""
        state = self.engine.state
        if state != "ready":
            raise EngineUnavailable(f"the engine is {state}; try again shortly")
        return self.engine.info

    def base_model(self) -> BaseModel:
        """What an adapter must fit. Raises EngineUnavailable."""
        info = self.require_engine()
        return BaseModel(self.base_name, info.digest, info.architecture, info.modules, info.norms)

    def drain(self) -> None:
        """Stops taking requests; those under way finish, streams included."""
        self.admission.drain()


def services_of(request: Request) -> Services:
    """The app's Services, for the routes."""
    return cast(Services, request.app.state.services)


def open_services(request: Request) -> Services:
    """The same for routes that take work: raises Draining once the server is shutting down."""
    services = services_of(request)
    services.admission.check_open()
    return services


AnyTime = Annotated[Services, Depends(services_of)]
WhileOpen = Annotated[Services, Depends(open_services)]
