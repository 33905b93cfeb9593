"""Streams that run while a hundred adapters load beside them; and what a cold first token costs."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx2

from benchmarks import w1
from benchmarks.own_server import own_server, push
from benchmarks.workload import Scenario, adapter_names

STREAMS = 8
COLD = 100
TOKENS = 1000  # of each stream
WIDTH = 8  # cold requests at once
EVERYBODY = Scenario("mixed", sequences=STREAMS + COLD, adapters=STREAMS + COLD)


@dataclass(frozen=True, slots=True)
class Cold:
    """Milliseconds between a stream's tokens, quiet and while adapters load; and cold requests'."""

    quiet_p50_ms: float
    quiet_p99_ms: float
    loading_p50_ms: float
    loading_p99_ms: float
    loads: int  # adapters that were loaded meanwhile
    alone_first_token_ms: float  # median, nothing else running
    alone_load_ms: float  # of that, loading the adapter
    warm_first_token_ms: float  # the same once more, from its slot
    alone_step_ms: float  # between tokens, for comparison


def measure(work: Path, base: Path, *options: str) -> Cold:
    w1.prepare(work, [EVERYBODY])
    names = [name for name in adapter_names(EVERYBODY) if name is not None]
    options = (*options, "--max-resident-adapters", str(2 * STREAMS), "--host-cache-bytes", "8GiB")
    with own_server(base, *options) as server:
        for name in names:
            push(server.url, name, work / "adapters" / name)
        return asyncio.run(_measure(server.url, names[:STREAMS], names[STREAMS:]))


async def _measure(url: str, resident: list[str], cold: list[str]) -> Cold:
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
        alone, others = cold[:10], cold[10:]
        lone = [await _ask(http, name, 8) for name in alone]
        warm = [await _ask(http, name, 8) for name in alone]
        await asyncio.gather(*(_stream(http, name, 16) for name in resident))
        quiet = await _gaps(http, resident)
        streams = asyncio.ensure_future(_gaps(http, resident))
        await asyncio.sleep(1)
        queue = list(others)

        async def loader() -> None:
            while queue and not streams.done():
                await _ask(http, queue.pop(), 1)

        await asyncio.gather(*(loader() for _ in range(WIDTH)))
        loaded = len(others) - len(queue)
        loading = await streams
    return Cold(
        *_percentiles(quiet), *_percentiles(loading), loaded,
        _median([first for first, _, _ in lone]), _median([load for _, load, _ in lone]),
        _median([first for first, _, _ in warm]),
        _median([step for _, _, step in lone]),
    )  # fmt: skip


async def _gaps(http: httpx2.AsyncClient, names: list[str]) -> list[float]:
    """Milliseconds between tokens of one stream for each name."""
    found = await asyncio.gather(*(_stream(http, name, TOKENS) for name in names))
    return [gap for gaps in found for gap in gaps]


async def _stream(http: httpx2.AsyncClient, name: str, tokens: int) -> list[float]:
    times: list[float] = []
    async with http.stream("POST", "/v1/completions", json=_body(name, tokens, True)) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in pairwise(times)]


async def _ask(http: httpx2.AsyncClient, name: str, tokens: int) -> tuple[float, float, float]:
    """Milliseconds to the first token, of that loading the adapter, and between tokens."""
    times: list[float] = []
    began = time.perf_counter()
    async with http.stream("POST", "/v1/completions", json=_body(name, tokens, True)) as reply:
        reply.raise_for_status()
        load_ms = float(reply.headers["x-adapterd-load-ms"])
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                json.loads(line[6:])
                times.append(1e3 * (time.perf_counter() - began))
    step = (times[-1] - times[0]) / max(1, len(times) - 1)
    return times[0], load_ms, step


def _body(name: str, tokens: int, stream: bool) -> dict[str, object]:
    draw = random.Random(name)
    prompt = [draw.randrange(2, 49152) for _ in range(8)]
    return {
        "model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": stream,
    }  # fmt: skip


def _percentiles(values: list[float]) -> tuple[float, float]:
    values = sorted(values)
    return values[len(values) // 2], values[len(values) * 99 // 100]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
