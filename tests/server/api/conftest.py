"""An app over a scripted engine, called in process or through a real uvicorn."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel
from adapters_store.errors import InvalidAdapter
from adapters_store.sources import Sources
from adapters_store.store import AdapterStore
from server.api.app import create_app
from server.api.services import ApiLimits
from server.api.text import TextCodec
from server.metrics import Metrics
from tests.server.api.fakes import CHAT_TEMPLATE, EOS, ScriptedEngine, make_tokenizer
from tests.server.api.stores import FACTS, make_store, publish

BASE = "tiny/base"


@dataclass
class House:
    """Everything a test may want to look at or change."""

    app: FastAPI
    engine: ScriptedEngine
    store: AdapterStore
    text: TextCodec
    client: httpx2.AsyncClient

    def say(self, text: str, *, eos: bool = True) -> None:
        """What every choice of every request says from now on."""
        ids = self.text._encode(text)
        self.engine.script = lambda request, index: (*ids, self.engine.eos) if eos else ids


def check(content: AdapterContent, base: BaseModel) -> AdapterFacts:
    if content.config["r"] > 4:
        raise InvalidAdapter("adapter_config.json: r is over 4; train with less")
    assert base.modules
    return FACTS


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with make_house(tmp_path) as made:
        yield made


@asynccontextmanager
async def make_house(
    tmp_path: Path,
    *,
    base: str = BASE,
    limits: ApiLimits | None = None,
    sources: Sources | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
) -> AsyncIterator[House]:
    tokenizer = make_tokenizer(chat_template=chat_template)
    text = TextCodec(tokenizer)
    eos = tokenizer.convert_tokens_to_ids(EOS)
    assert isinstance(eos, int)
    engine = ScriptedEngine(lambda request, index: (), eos=eos)
    store = make_store(tmp_path, base=base)
    metrics = Metrics(CollectorRegistry(), model_name=base, engine=engine, max_resident_adapters=4)
    app = create_app(
        engine=engine,
        store=store,
        text=text,
        base_name=base,
        check=check,
        metrics=metrics,
        limits=limits or ApiLimits(max_upload_bytes=1 << 20),
        sources=sources,
    )
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://adapterd") as client:
        made = House(app, engine, store, text, client)
        made.say("hello world")
        yield made
    store.close()


@pytest.fixture
def adapter(house: House) -> Callable[[str], str]:
    """Publishes an adapter of this name; returns its digest."""
    return lambda name: publish(house.store, name).digest


@asynccontextmanager
async def served(app: FastAPI, *, port: int = 0) -> AsyncIterator[str]:
    """The app behind a real server, on a free port unless one is named; yields its URL."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Waits for something that happens by itself."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
