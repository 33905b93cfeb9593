"""Puts the parts together and runs them until told to stop: `adapterd serve`.

Here: run, the order of starting and stopping, signals. Not here: options (config.py), what is
printed (startup_report.py), any route.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from rich.console import Console
from uvicorn.loops.auto import auto_loop_factory

import demo
from adapters_store.databases import catalog_url, shown
from adapters_store.errors import (
    AdapterNotFound,
    EngineStartFailed,
    InvalidAdapter,
    NameReserved,
)
from adapters_store.sources import Sources, adapter_files
from adapters_store.store import AdapterStore
from server import __version__
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits
from server.api.app import create_app
from server.api.services import ApiLimits, Services
from server.api.text import TextCodec
from server.child_process import Child
from server.config import Settings, SettingsError
from server.engine.base_files import resolve_model
from server.engine.client import EngineClient
from server.engine.messages import EngineConfig
from server.metrics import Metrics
from server.open_store import blob_place, open_store
from server.startup_report import LoadBar, Serving, announcement

logger = logging.getLogger(__name__)

ANNOUNCED_ADAPTERS = 20
CLOSE_S = 5  # for connections to close once their requests have ended
MULTIPART_BYTES = 1 << 20  # of boundaries and headers around an upload's files


def run(settings: Settings, started: Child) -> int:
    """Serves until a signal; returns the exit status. `started` becomes the engine.

    Raises SettingsError if the address cannot be had, EngineStartFailed if the base cannot.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.log_level == "info":
        logging.getLogger("uvicorn").setLevel("WARNING")  # ours says where it listens
        logging.getLogger("alembic").setLevel("WARNING")  # its name for every schema it brings
        logging.getLogger("httpx2").setLevel("WARNING")  # a line per file of the hub
        logging.getLogger("aiobotocore").setLevel("WARNING")  # where S3's keys were found
    with _bound_socket(settings) as listener:
        if not ip_address(listener.getsockname()[0]).is_loopback:
            logger.warning(
                "whoever reaches %s can use this server: it has no authentication yet; keep it "
                "behind something that has",
                settings.host,
            )
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # uvloop's where it is
            return runner.run(_serve(settings, listener, started))


class StopSignals:
    """SIGTERM and Ctrl-C: the first asks to drain, the second ends the task that made this.

    Until `drainable` is set there is nothing to drain, and the first ends it too.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.drainable = False
        self.asked = asyncio.Event()  # to drain
        self.ended_by: int | None = None  # the signal that ended the task, if one did
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._hear, number)

    def _hear(self, number: int) -> None:
        if self.drainable and not self.asked.is_set():
            self.asked.set()
        else:
            self.ended_by = number
            self._task.cancel()


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with its signals left to StopSignals.

    Its own handlers raise the signal again once it has drained, so that a clean stop would exit
    as a killed process.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(settings: Settings, listener: socket.socket, started: Child) -> int:
    stop = StopSignals()
    console = Console(stderr=True)
    try:
        sources = _sources(settings)
        model = settings.model or str(demo.base_path())
        folder = await asyncio.to_thread(resolve_model, model)
        place = blob_place(settings)
        with closing(await asyncio.to_thread(open_store, settings, place)) as store:
            config = settings.engine_config(model=str(folder), blobs=place)
            # The tokenizer is read while the engine's process reads the weights.
            reading = asyncio.create_task(asyncio.to_thread(_read_tokenizer, folder))
            async with _started_engine(config, started, console) as engine:
                app = _app(settings, engine, store, await reading, sources)
                if settings.model is None:
                    await asyncio.to_thread(_publish_demo, app)
                # What is there now stays: a full collection would look at it all, and replies wait.
                gc.freeze()
                gc.enable()
                await _serve_http(settings, app, engine, listener, stop)
    except asyncio.CancelledError:
        if stop.ended_by is None:
            raise
        return 128 + stop.ended_by
    return 0


@asynccontextmanager
async def _started_engine(
    config: EngineConfig, started: Child, console: Console
) -> AsyncIterator[EngineClient]:
    """The engine, ready; stopped on every way out."""
    bar = LoadBar(console)
    engine = EngineClient(config, started=started, on_progress=bar.show)
    try:
        with bar:
            await engine.start()
        yield engine
    finally:
        await engine.stop()


async def _serve_http(
    settings: Settings,
    app: FastAPI,
    engine: EngineClient,
    listener: socket.socket,
    stop: StopSignals,
) -> None:
    """Until asked to stop; then until running requests have ended, or the time for that has."""
    services: Services = app.state.services
    server = DrainingServer(_uvicorn_config(settings, app))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        if serving.done():
            return serving.result()  # it could not listen, and raises why
        await asyncio.sleep(0.01)
    stop.drainable = True
    port = listener.getsockname()[1]
    print(await asyncio.to_thread(_announcement, settings, services, port), flush=True)
    asked = asyncio.create_task(stop.asked.wait())
    await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)

    print("finishing running requests; a second signal stops at once", file=sys.stderr)
    services.drain()
    server.should_exit = True
    try:
        await asyncio.wait({serving}, timeout=settings.drain_seconds)
    finally:  # on a second signal, too
        if not serving.done():
            # Every request that still runs gets an error that says so, and its connection closes.
            await engine.stop()
            await asyncio.wait({serving}, timeout=CLOSE_S)
    await serving


def _uvicorn_config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=settings.log_level == "debug",
        lifespan="off",
        ws="none",
        server_header=False,
        # For clients that do not read their answer's end.
        timeout_graceful_shutdown=settings.drain_seconds + CLOSE_S,
    )


def _announcement(settings: Settings, services: Services, port: int) -> str:
    records, more = services.store.list(limit=ANNOUNCED_ADAPTERS)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    example = next(iter(demo.EXAMPLES.items()))
    serving = Serving(
        version=__version__,
        url=f"http://{host}:{port}",
        base_name=settings.base_name,
        base=services.engine.info,
        adapters=[record.name for record in records],
        more_adapters=more,
        kept_in=_kept_in(settings),
        chat=services.text.has_chat_template,
        example=example if settings.model is None else (settings.base_name, "Once upon a time"),
    )
    return announcement(serving)


def _kept_in(settings: Settings) -> str:
    """Where adapters rest, without passwords."""
    places = [str(settings.data_dir)]
    if settings.store is not None:
        places.append(f"files in {blob_place(settings)}")
    if settings.catalog is not None:
        places.append(f"names in {shown(catalog_url(settings.catalog))}")
    return ", ".join(places)


def _bound_socket(settings: Settings) -> socket.socket:
    """The address, held before minutes are spent on loading; connections are refused until then."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise SettingsError(
            f"--host {settings.host} --port {settings.port}: {error.strerror}. Choose another, or "
            "--port 0 for any that is free."
        ) from None
    return listener


def _read_tokenizer(folder: Path) -> TextCodec:
    try:
        return TextCodec.load(str(folder))
    except (OSError, ValueError) as error:
        raise EngineStartFailed(
            f"{folder} has no tokenizer that transformers can read; save one there with "
            f"tokenizer.save_pretrained: {error}"
        ) from error


def _sources(settings: Settings) -> Sources:
    """Raises SettingsError for a root that is no folder: a mistyped one would refuse every load."""
    for root in settings.adapter_root:
        if not root.is_dir():
            raise SettingsError(f"--adapter-root {root}: there is no such folder")
    return Sources(settings.adapter_root, hub=settings.adapter_hub)


def _app(
    settings: Settings,
    engine: EngineClient,
    store: AdapterStore,
    text: TextCodec,
    sources: Sources,
) -> FastAPI:
    metrics = Metrics(
        CollectorRegistry(),
        model_name=settings.base_name,
        engine=engine,
        max_resident_adapters=settings.max_resident_adapters,
        eviction=settings.eviction,
    )
    slots = SlotLimits(
        settings.max_resident_adapters,
        engine.info.slot_rows,
        engine.info.slot_row_bytes,
        settings.max_rank,
    )
    limits = ApiLimits(
        max_upload_bytes=settings.max_upload_bytes + MULTIPART_BYTES,
        max_requests=settings.max_concurrent_requests,
    )
    return create_app(
        engine=engine,
        store=store,
        text=text,
        base_name=settings.base_name,
        check=partial(methods.check, limits=slots),
        metrics=metrics,
        limits=limits,
        sources=sources,
    )


def _publish_demo(app: FastAPI) -> None:
    """Puts the demo's adapters into the store; a name that is taken already stays as it is.

    One that the settings leave no place for (a low --max-rank, the base named as it is) is left
    out: nobody asked for it.
    """
    services: Services = app.state.services
    for name, folder in demo.adapter_paths().items():
        try:
            services.store.get(name)
        except AdapterNotFound:
            try:
                _publish_folder(services, name, folder)
            except (InvalidAdapter, NameReserved) as error:
                logger.warning("the demo's adapter %s is left out: %s", name, error.message)


def _publish_folder(services: Services, name: str, folder: Path) -> None:
    base = services.base_model()
    with adapter_files(folder) as files:
        services.store.publish(name, files, check=lambda content: services.check(content, base))
