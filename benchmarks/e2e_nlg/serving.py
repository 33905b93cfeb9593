"""What is asked of a server in chat requests, many of them open together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

from benchmarks.e2e_nlg.offline import Reply
from benchmarks.e2e_nlg.prompt import message
from benchmarks.own_server import ANSWER_S

AT_ONCE = 32  # requests open together


@dataclass(frozen=True, slots=True)
class Ask:
    """One chat request. `model` is an adapter's name, or the base's."""

    model: str
    mr: str
    max_tokens: int


def ask_all(url: str, asks: Sequence[Ask]) -> list[Reply]:
    """Every answer, in the order of `asks`; AT_ONCE requests are open together."""
    return asyncio.run(_ask_all(url, asks))


async def _ask_all(url: str, asks: Sequence[Ask]) -> list[Reply]:
    room = asyncio.Semaphore(AT_ONCE)
    async with httpx2.AsyncClient(base_url=url, timeout=ANSWER_S, trust_env=False) as client:

        async def one(ask: Ask) -> Reply:
            async with room:
                return await _ask(client, ask)

        return list(await asyncio.gather(*(one(ask) for ask in asks)))


async def _ask(client: httpx2.AsyncClient, ask: Ask) -> Reply:
    body = {
        "model": ask.model,
        "messages": [message(ask.mr)],
        "max_tokens": ask.max_tokens,
        "temperature": 0,
    }
    response = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    text = response["choices"][0]["message"]["content"]
    return Reply(text, response["usage"]["completion_tokens"])
