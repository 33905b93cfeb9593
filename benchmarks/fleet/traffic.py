"""Requests in a closed loop: so many clients, each asking again as soon as it is answered."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """What every client asks: `prompt_tokens` random tokens continued by `new_tokens`, greedily."""

    clients: int
    seconds: float
    prompt_tokens: int
    new_tokens: int
    vocabulary: int


def zipf(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count`, the first the likeliest: P(k) ∝ 1 / (k + 1)."""
    draw = random.Random(seed)
    weights = [1 / (place + 1) for place in range(count)]
    while True:
        yield from draw.choices(range(count), weights, k=4096)


def throughput(url: str, load: Load, name: Callable[[], str]) -> float:
    """Generated tokens per second of requests that ended within the time."""
    return asyncio.run(_throughput(url, load, name))


async def _throughput(url: str, load: Load, name: Callable[[], str]) -> float:
    draw = random.Random(0)
    done = 0
    deadline = time.perf_counter() + load.seconds

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            body = {
                "model": name(),
                "prompt": [draw.randrange(2, load.vocabulary) for _ in range(load.prompt_tokens)],
                "max_tokens": load.new_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            reply = await http.post("/v1/completions", json=body)
            reply.raise_for_status()
            if time.perf_counter() < deadline:
                done += reply.json()["usage"]["completion_tokens"]

    limits = httpx2.Limits(max_connections=load.clients)
    async with (
        httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(load.clients):
            group.create_task(client(http))
    return done / load.seconds
