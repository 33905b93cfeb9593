"""What the catalogue costs with many adapters in it: start-up, memory, the time of its calls."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from benchmarks.fleet.files import name_of
from benchmarks.own_server import own_server

CALLS = 500
SETTLED_S = 2.0


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of catalogue call, over a kept connection, one after another."""

    what: str
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A server that has just started, with so many adapters in its catalogue."""

    base: str
    adapters: int
    start_s: float  # process start → ready, the base's loading in it
    api_mib: float  # resident memory of the process that answers
    engine_mib: float


def standing(name: str, base: Path, adapters: int, *options: str) -> Standing:
    began = time.perf_counter()
    with own_server(base, *options) as server:
        start_s = time.perf_counter() - began
        api = psutil.Process(server.pid)
        engine = _settled(lambda: sum(c.memory_info().rss for c in api.children(recursive=True)))
        return Standing(name, adapters, start_s, api.memory_info().rss / 2**20, engine / 2**20)


def _settled(size: Callable[[], int]) -> int:
    """Once it grows no more: a server gets its KV cache's memory in the background."""
    before, now = -1, size()
    while now > before:
        time.sleep(SETTLED_S)
        before, now = now, size()
    return now


def calls(url: str, adapters: int) -> list[Call]:
    """Each kind of call `CALLS` times, for adapters drawn at random."""
    draw = random.Random(0)

    def any_name() -> str:
        return name_of(draw.randrange(adapters))

    kinds: dict[str, Callable[[], str]] = {
        "GET /v1/adapters?limit=100": lambda: f"/v1/adapters?limit=100&after={any_name()}",
        "GET /v1/adapters/{name}": lambda: f"/v1/adapters/{any_name()}",
        "GET /v1/adapters/{name}/versions": lambda: f"/v1/adapters/{any_name()}/versions",
        "GET /v1/adapters/{name}/aliases": lambda: f"/v1/adapters/{any_name()}/aliases",
        "GET /v1/models/{name}": lambda: f"/v1/models/{any_name()}",
    }
    with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        return [_timed(client, what, path) for what, path in kinds.items()]


def _timed(client: httpx2.Client, what: str, path: Callable[[], str]) -> Call:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        client.get(path()).raise_for_status()
        times.append(1e3 * (time.perf_counter() - began))
    times.sort()
    return Call(what, times[len(times) // 2], times[len(times) * 99 // 100])
