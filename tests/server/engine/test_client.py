"""The engine as a process: killed, it ends its requests with an error and comes back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from adapters_store.content import AdapterContent, AdapterFacts
from adapters_store.errors import AdapterNotFound, EngineStartFailed, EngineUnavailable
from adapters_store.store import AdapterStore, UploadedFile
from server.adapters.loader_process import sendable
from server.engine.client import EngineClient
from server.engine.messages import EngineConfig, GenerationRequest, LoadProgress, SamplingParams
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=240)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    root = tmp_path_factory.mktemp("engine")
    base = make_base(LLAMA, root / "base")
    make_adapter(base, LLAMA, RECIPES[0], root / "all", seed=0)
    return EngineConfig(model=str(base), blobs=str(root / "store"), dtype="float32", threads=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(config: EngineConfig) -> AsyncIterator[EngineClient]:
    """One for all tests here: starting it takes seconds."""
    client = EngineClient(config)
    await client.start()
    yield client
    await client.stop()
    assert client.pid is None


async def tokens(client: EngineClient, request: GenerationRequest) -> list[int | None]:
    return [e.token_id async for events in client.generate(request) for e in events]


async def until(condition: object, seconds: float = 20.0) -> None:
    """Waits until `condition()` holds."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def publish(root: Path) -> str:
    """Stores the module's adapter; returns its digest."""
    store = AdapterStore(root, base_name="tiny")

    def check(content: AdapterContent) -> AdapterFacts:
        return AdapterFacts("lora", 8, (), 0)

    files = ("adapter_config.json", "adapter_model.safetensors")
    opened = [(root / "all" / name).open("rb") for name in files]
    try:
        uploads = [UploadedFile(n, f) for n, f in zip(files, opened, strict=True)]
        return store.publish("all", uploads, check=check).version.digest
    finally:
        for file in opened:
            file.close()
        store.close()


async def test_an_adapter_from_the_store_changes_the_answer(
    client: EngineClient, config: EngineConfig
) -> None:
    digest = publish(Path(config.blobs).parent)
    base = await tokens(client, GenerationRequest("a", (3, 1, 4), GREEDY))
    tuned = await tokens(client, GenerationRequest("b", (3, 1, 4), GREEDY, digest))
    assert len(base) == len(tuned) == 8
    assert base != tuned
    await until(lambda: client.stats.residency.get(digest) == "slot")
    with pytest.raises(AdapterNotFound):
        await tokens(client, GenerationRequest("c", (3, 1, 4), GREEDY, "0" * 64))


async def test_many_at_once_equal_each_alone(client: EngineClient) -> None:
    requests = [GenerationRequest(str(i), (3, 1, i), GREEDY) for i in range(20)]
    alone = [await tokens(client, request) for request in requests]
    together = await asyncio.gather(*(tokens(client, request) for request in requests))
    assert list(together) == alone


async def test_closing_the_generator_ends_the_request(client: EngineClient) -> None:
    before = client.stats.steps
    stream = client.generate(GenerationRequest("a", (3, 1, 4), LONG))
    await anext(stream)
    await stream.aclose()
    await tokens(client, GenerationRequest("b", (3,), GREEDY))  # what it ends, has begun after
    await until(lambda: client.stats.steps > before and client.stats.running == 0)
    assert client.stats.kv_blocks_used == 0
    assert client.stats.steps < before + 240


async def test_dropping_one_sequence_leaves_the_others(client: EngineClient) -> None:
    alone = await tokens(client, GenerationRequest("a", (3, 1, 4), LONG))
    got: dict[int, list[int | None]] = {0: [], 1: []}
    async for events in client.generate(GenerationRequest("b", (3, 1, 4), LONG, n=2)):
        for event in events:
            got[event.index].append(event.token_id)
        if len(got[0]) == 2:
            client.drop("b", 0)
    assert got[1] == alone
    assert len(got[0]) < len(alone)
    await until(lambda: client.stats.kv_blocks_used == 0)


async def test_killed_under_load_it_ends_its_requests_and_serves_again(
    client: EngineClient,
) -> None:
    wanted = await tokens(client, GenerationRequest("before", (3, 1, 4), GREEDY))
    open_requests = [
        asyncio.create_task(tokens(client, GenerationRequest(str(i), (3, 1, i), LONG)))
        for i in range(12)
    ]
    await until(lambda: client.stats.running > 0)
    pid, restarts = client.pid, client.restarts
    assert pid is not None
    loaders = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*open_requests, return_exceptions=True)
    assert all(isinstance(e, EngineUnavailable) for e in ended), ended
    with pytest.raises(EngineUnavailable, match="restarting"):
        await tokens(client, GenerationRequest("too early", (3, 1, 4), GREEDY))
    await until(lambda: client.state == "ready")
    assert client.pid not in (None, pid)
    await until(lambda: client.restarts == restarts + 1)
    assert await tokens(client, GenerationRequest("after", (3, 1, 4), GREEDY)) == wanted
    assert len(loaders) == (1 if sendable() else 0)
    await until(lambda: not any(loader.is_running() for loader in loaders), 5)


async def test_signals_to_the_group_do_not_end_the_engine(client: EngineClient) -> None:
    assert client.pid is not None
    restarts = client.restarts
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(client.pid, number)
    assert len(await tokens(client, GenerationRequest("a", (3, 1, 4), GREEDY))) == 8
    assert client.restarts == restarts


async def test_when_the_other_end_closes_the_engine_ends(client: EngineClient) -> None:
    assert client.pid is not None
    process, restarts = psutil.Process(client.pid), client.restarts
    stream = client.generate(GenerationRequest("a", (3, 1, 4), LONG))
    await anext(stream)
    assert client._writer is not None
    client._writer.transport.abort()
    await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 5)
    with pytest.raises(EngineUnavailable):
        async for _ in stream:
            pass
    await until(lambda: client.restarts == restarts + 1)


async def killed(client: EngineClient) -> None:
    """Returns when the next engine is ready."""
    assert client.pid is not None
    restarts = client.restarts
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: client.restarts == restarts + 1)


async def test_prefetched_pinned_and_unpinned_as_the_stats_show(
    client: EngineClient, config: EngineConfig
) -> None:
    digest = publish(Path(config.blobs).parent)
    await killed(client)
    await client.prefetch(digest, "host")
    assert client.stats.residency == {digest: "host"}
    await client.pin(digest, 300)
    assert client.stats.residency == {digest: "slot"}
    assert client.stats.pinned == (digest,)
    await client.unpin(digest)
    await client.unpin(digest)
    assert client.stats.pinned == ()
    for wish in (client.prefetch("0" * 64), client.pin("0" * 64)):
        with pytest.raises(AdapterNotFound):
            await wish


async def test_a_pin_ends_by_itself_though_the_engine_has_nothing_to_do(
    client: EngineClient, config: EngineConfig
) -> None:
    digest = publish(Path(config.blobs).parent)
    await client.pin(digest, 0.2)
    assert client.stats.pinned == (digest,)
    await until(lambda: client.stats.pinned == ())


async def test_pins_that_hold_are_made_again_in_the_next_engine(
    client: EngineClient, config: EngineConfig
) -> None:
    digest = publish(Path(config.blobs).parent)
    await client.pin(digest, 300)
    await killed(client)
    await until(lambda: client.stats.pinned == (digest,))
    assert client.stats.residency == {digest: "slot"}
    await client.pin(digest, 0.01)
    await killed(client)
    assert len(await tokens(client, GenerationRequest("a", (3, 1, 4), GREEDY))) == 8
    assert client.stats.pinned == (), "its time was over"
    assert client.pid is not None
    await client.pin(digest)
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: client.state == "restarting")
    await client.unpin(digest)
    await until(lambda: client.state == "ready")
    assert len(await tokens(client, GenerationRequest("a", (3, 1, 4), GREEDY))) == 8
    assert client.stats.pinned == (), "it was unpinned while there was no engine"


async def test_a_pin_of_what_is_gone_is_given_up_after_a_restart(
    client: EngineClient, config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    client._pins["0" * 64] = None
    await killed(client)
    await until(lambda: not client._pins)
    assert "adapter 000000000000 is pinned no more" in caplog.text


async def test_a_prefetch_ends_when_the_engine_dies(
    client: EngineClient, config: EngineConfig
) -> None:
    digest = publish(Path(config.blobs).parent)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)  # so that it cannot have answered
    asked = asyncio.create_task(client.prefetch(digest))
    await until(lambda: client._asked)
    await killed(client)
    with pytest.raises(EngineUnavailable, match="died"):
        await asked
    assert not client._asked


async def test_progress_is_told_and_a_base_that_cannot_be_served_says_why(
    config: EngineConfig, tmp_path: Path
) -> None:
    seen: list[LoadProgress] = []
    client = EngineClient(config, on_progress=seen.append)
    info = await client.start()
    assert info == client.info
    assert {p.what for p in seen} == {"digest", "weights"}
    await client.stop()
    assert client.state == "stopped"

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    broken = EngineClient(replace(config, model=str(tmp_path)))
    with pytest.raises(EngineStartFailed, match="safetensors"):
        await broken.start()
    assert broken.state == "failed"
    assert broken.pid is None
