"""The `openai` client, unchanged, against a real server."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import openai
import pytest

from tests.server.api.conftest import BASE, House, make_house, served

QUESTION: list = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with served(house.app) as url, open_client(url) as made:
        yield made


def open_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_completions(client: openai.AsyncOpenAI):
    reply = await client.completions.create(model=BASE, prompt="hi", n=3, logprobs=1)
    assert [choice.text for choice in reply.choices] == ["hello world"] * 3
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["hell", "o", " w", "or", "l", "d"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 21


async def test_streamed_completions(client: openai.AsyncOpenAI):
    stream = await client.completions.create(
        model=BASE, prompt="hi", n=3, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = ["", "", ""], None
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["hello world"] * 3
    assert usage is not None
    assert usage.total_tokens == 23


async def test_chat(client: openai.AsyncOpenAI):
    reply = await client.chat.completions.create(
        model=BASE, messages=QUESTION, logprobs=True, top_logprobs=2, stop=["wor"], n=2
    )
    assert [choice.message.content for choice in reply.choices] == ["hello "] * 2
    assert [choice.finish_reason for choice in reply.choices] == ["stop"] * 2
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [one.token for one in logprobs.content] == ["hell", "o", " w"]
    assert [len(one.top_logprobs) for one in logprobs.content] == [2, 2, 2]


async def test_streamed_chat(client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(
        model=BASE, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    text, usage, reasons = "", None, []
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    assert text == "hello world"
    assert reasons[-1] == "stop"
    assert usage is not None
    assert usage.total_tokens == 12


async def test_a_reply_can_be_sent_back(client: openai.AsyncOpenAI):
    reply = await client.chat.completions.create(model=BASE, messages=QUESTION)
    said: list = [*QUESTION, reply.choices[0].message, *QUESTION]
    assert (await client.chat.completions.create(model=BASE, messages=said)).choices
    said[1] = reply.choices[0].message.model_dump()
    assert (await client.chat.completions.create(model=BASE, messages=said)).choices


async def test_an_adapter(client: openai.AsyncOpenAI, adapter: Callable[[str], str]):
    digest = adapter("sql")
    raw = await client.chat.completions.with_raw_response.create(model="sql", messages=QUESTION)
    assert raw.headers["x-adapterd-adapter-version"] == digest
    raw = await client.completions.with_raw_response.create(
        model=BASE, prompt="hi", extra_body={"adapter_id": "sql"}
    )
    assert raw.headers["x-adapterd-adapter-version"] == digest


async def test_models(client: openai.AsyncOpenAI, adapter: Callable[[str], str]):
    adapter("sql")
    assert [model.id async for model in client.models.list()] == [BASE, "sql"]
    assert (await client.models.retrieve("sql")).owned_by == "default"


async def test_an_unknown_model(client: openai.AsyncOpenAI):
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="nobody", messages=QUESTION)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


async def test_what_is_refused(client: openai.AsyncOpenAI):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.completions.create(model=BASE, prompt="hi", suffix="x")
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "suffix")
    with pytest.raises(openai.BadRequestError) as raised:
        await client.completions.create(model=BASE, prompt="hi", max_tokens=4000)
    assert raised.value.code == "context_length_exceeded"


async def test_an_error_inside_a_stream(tmp_path: Path):
    async with make_house(tmp_path) as house, served(house.app) as url:
        house.engine.fail_after = (2, RuntimeError("boom"))
        async with open_client(url) as client:
            stream = await client.completions.create(model=BASE, prompt="hi", stream=True)
            with pytest.raises(openai.APIError, match="internal error"):
                async for _ in stream:
                    pass
