"""Puts the HTTP side together. Every part is passed in; the app keeps them in its `state.services`.

Here: create_app. Not here: building the engine, the store or the settings (server/cli.py does).
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from adapters_store.sources import Sources
from adapters_store.store import AdapterStore
from server.api import (
    adapters,
    advise,
    aliases,
    compare,
    errors,
    files,
    fine_tuning,
    health,
    openai,
)
from server.api import store as store_routes
from server.api.compat import llamacpp, lorax, sglang, vllm
from server.api.job_counts import JobCounts
from server.api.middleware import RequestEnvelope
from server.api.reachability import Reachability
from server.api.services import AdapterCheck, Admission, ApiLimits, Engine, Services
from server.api.text import TextCodec
from server.metrics import Metrics
from training.checkpoints import CheckpointShelf
from training.jobs import JobBook

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    *,
    engine: Engine,
    store: AdapterStore,
    text: TextCodec,
    base_name: str,
    check: AdapterCheck,
    metrics: Metrics,
    limits: ApiLimits | None = None,
    sources: Sources | None = None,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """The server's ASGI app.

    The engine may still be starting: what needs it answers 503 until it is ready. `check` says
    whether an uploaded adapter fits the base, `sources` what load calls may read (nothing, unless
    it is given). Call `app.state.services.drain()` when shutdown begins, and keep the app running
    until its open requests have ended.
    """
    limits = limits or ApiLimits()
    app = FastAPI(
        title="adapterd",
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    jobs = JobBook(store.database, base=base_name)
    app.state.services = Services(
        engine=engine,
        store=store,
        text=text,
        base_name=base_name,
        check=check,
        limits=limits,
        metrics=metrics,
        admission=Admission(limits.max_requests),
        sources=sources or Sources(),
        reachability=Reachability(store.probe),
        jobs=jobs,
        checkpoints=CheckpointShelf(store.database, store.objects, store.staging),
        job_counts=JobCounts(jobs.counts),
    )
    errors.install(app)
    app.add_middleware(RequestEnvelope)
    native = (openai, adapters, aliases, compare, files, fine_tuning, advise, store_routes, health)
    for part in (*native, vllm, sglang, lorax, llamacpp):
        app.include_router(part.router())
    return app
