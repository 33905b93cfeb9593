"""LoRAX's and TGI's documented calls, and their clients' ways."""

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, TextGenerationError

from adapters_store.errors import EngineFailed
from tests.server.api.conftest import BASE, House, served
from tests.server.api.fakes import CONTEXT, EOS
from tests.server.api.sse import events

INPUTS = "Natalia sold clips to 48 of her friends in April."
HELLO = ["hell", "o", " w", "or", "l", "d"]


async def post(house: House, path: str, **body: Any) -> tuple[int, Any]:
    reply = await house.client.post(path, json=body)
    return reply.status_code, reply.json()["error"] if reply.is_error else reply.json()


async def streamed(house: House, **parameters: Any) -> list[Any]:
    body = {"inputs": "hi", "parameters": parameters}
    reply = await house.client.post("/generate_stream", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events(reply.text)


async def test_generate_with_an_adapter(house: House, adapter: Callable[[str], str]):
    digest = adapter("gsm8k")
    parameters = {"max_new_tokens": 64, "adapter_id": "gsm8k"}
    body = {"inputs": INPUTS, "parameters": parameters}
    reply = await house.client.post("/generate", json=body)
    assert reply.json() == {"generated_text": "hello world"}
    assert reply.headers["x-adapterd-adapter-version"] == digest
    request = house.engine.requests[0]
    assert (request.adapter, request.sampling.max_tokens) == (digest, 64)
    assert (request.sampling.temperature, request.sampling.logprobs) == (0, None)


async def test_without_parameters_the_base_answers_as_long_as_the_context(house: House):
    status, reply = await post(house, "/generate", inputs="hi")
    assert (status, reply) == (200, {"generated_text": "hello world"})
    request = house.engine.requests[0]
    assert (request.adapter, request.sampling.max_tokens) == (None, CONTEXT - 2)


async def test_details(house: House):
    parameters = {"details": True, "seed": 7, "do_sample": True}
    status, reply = await post(house, "/generate", inputs="hi", parameters=parameters)
    details = reply["details"]
    tokens = details.pop("tokens")
    assert details == {
        "finish_reason": "eos_token",
        "prompt_tokens": 2,
        "generated_tokens": 7,
        "skipped_tokens": 0,
        "seed": 7,
        "prefill": [],
    }
    assert [token["text"] for token in tokens] == [*HELLO, EOS]
    assert [token["special"] for token in tokens] == [False] * 6 + [True]
    assert [token["id"] for token in tokens] == [
        *house.text._encode("hello world"),
        house.engine.eos,
    ]
    assert {token["logprob"] for token in tokens} == {-0.5}


async def test_a_stream_of_tokens(house: House):
    *chunks, last = await streamed(house)
    assert [chunk["token"]["text"] for chunk in chunks] == HELLO
    assert all(chunk["generated_text"] is chunk["details"] is None for chunk in chunks)
    assert last["token"] == {
        "id": house.engine.eos, "text": EOS, "logprob": -0.5, "special": True, "skipped": False,
    }  # fmt: skip
    assert last["generated_text"] == "hello world"
    assert last["details"] == {
        "finish_reason": "eos_token",
        "prompt_tokens": 2,
        "generated_tokens": 7,
        "skipped_tokens": 0,
        "seed": None,
    }


async def test_the_end_by_length_and_by_a_stop_sequence(house: House):
    *_, last = await streamed(house, max_new_tokens=2)
    assert (last["token"]["text"], last["generated_text"]) == ("o", "hello")
    assert last["details"]["finish_reason"] == "length"
    *_, last = await streamed(house, stop=["wor"])
    assert (last["token"]["text"], last["generated_text"]) == ("", "hello ")
    assert last["details"]["finish_reason"] == "stop_sequence"
    assert last["details"]["generated_tokens"] == 4
    body = {"inputs": "hi", "parameters": {"stop": ["wor"], "details": True}}
    whole = (await house.client.post("/generate", json=body)).json()
    assert whole["generated_text"] == "hello "
    assert [token["text"] for token in whole["details"]["tokens"]] == ["hell", "o", " ", ""]


@pytest.mark.parametrize("said", ["hello world", "né ☃ hello", "wwww", "<", "ww"])
@pytest.mark.parametrize("stop", [[], ["wx"], ["orldx", "d!"], ["www"], ["☃"]])
@pytest.mark.parametrize("per_step", [1, 3])
async def test_the_tokens_texts_are_the_text(
    house: House, said: str, stop: list[str], per_step: int
):
    house.say(said)
    house.engine.per_step = per_step
    chunks = await streamed(house, stop=stop)
    texts = [chunk["token"]["text"] for chunk in chunks if not chunk["token"]["special"]]
    assert "".join(texts) == chunks[-1]["generated_text"]
    assert len(chunks) == chunks[-1]["details"]["generated_tokens"]
    body = {"inputs": "hi", "parameters": {"stop": stop, "details": True}}
    whole = (await house.client.post("/generate", json=body)).json()
    assert whole["generated_text"] == chunks[-1]["generated_text"]
    assert whole["details"]["tokens"][-1]["id"] == chunks[-1]["token"]["id"]


async def test_the_full_text_has_the_prompt_before_it_and_no_token_does(house: House):
    status, reply = await post(
        house, "/generate", inputs="say: ", parameters={"return_full_text": True}
    )
    assert reply == {"generated_text": "say: hello world"}
    body = {"inputs": "say: ", "parameters": {"return_full_text": True}}
    chunks = events((await house.client.post("/generate_stream", json=body)).text)
    assert chunks[0]["token"]["text"] == "hell"
    assert chunks[-1]["generated_text"] == "say: hello world"


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0),
        ({"do_sample": False}, 0),
        ({"do_sample": False, "temperature": 1.0, "seed": 3}, 0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
        ({"do_sample": True, "temperature": 0.0}, 0),
        ({"temperature": 0.7}, 0.7),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9}, 1.0),
        ({"top_p": 0.9, "temperature": 0}, 0),
    ],
)
async def test_when_chance_decides(house: House, parameters: dict[str, Any], temperature: float):
    status, _ = await post(house, "/generate", inputs="hi", parameters=parameters)
    assert status == 200
    assert house.engine.requests[0].sampling.temperature == temperature


async def test_every_field_reaches_the_engine(house: House):
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "repetition_penalty": 1.1,
        "frequency_penalty": 0.5, "seed": 9,
    }  # fmt: skip
    parameters = fields | {"do_sample": True, "ignore_eos_token": True, "max_new_tokens": 7}
    await post(house, "/generate", inputs="hi", parameters=parameters)
    sampling = house.engine.requests[0].sampling
    expected = fields | {"ignore_eos": True, "max_tokens": 7}
    assert {name: getattr(sampling, name) for name in expected} == expected


BODIES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "invalid_request", "inputs"),
    ({"inputs": ""}, "invalid_request", "inputs"),
    ({"inputs": ["hi"]}, "invalid_request", "inputs"),
    ({"inputs": "hi" * 100}, "context_length_exceeded", "inputs"),
    ({"inputs": "hi", "text": "hi"}, "invalid_request", "text"),
]
PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"adapter_id": "org/sql", "adapter_source": "hub"}, "adapter_source"),
    ({"merged_adapters": {"ids": ["a"]}}, "merged_adapters"),
    ({"best_of": 2}, "best_of"),
    ({"watermark": True}, "watermark"),
    ({"decoder_input_details": True}, "decoder_input_details"),
    ({"typical_p": 0.9}, "typical_p"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_tokens": 5}, "max_tokens"),
]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
async def test_refusals(house: House, path: str):
    for body, code, param in BODIES:
        status, error = await post(house, path, **body)
        assert (status, error["code"], error["param"]) == (400, code, param)
    for parameters, name in PARAMETERS:
        status, error = await post(house, path, inputs="hi", parameters=parameters)
        assert (status, error["param"]) == (400, f"parameters.{name}")
    unknown = {"adapter_id": "nobody"}
    status, error = await post(house, path, inputs="hi", parameters=unknown)
    assert (status, error["code"]) == (404, "model_not_found")
    assert error["param"] == "parameters.adapter_id"
    assert house.engine.requests == []


async def test_the_root_answers_in_a_list_or_streams(house: House):
    status, reply = await post(house, "/", inputs="hi", parameters=None, stream=False)
    assert (status, reply) == (200, [{"generated_text": "hello world"}])
    for path in ("/", "/generate"):
        reply = await house.client.post(path, json={"inputs": "hi", "stream": True})
        assert events(reply.text)[-1]["generated_text"] == "hello world"


async def test_info(house: House):
    info = (await house.client.get("/info")).json()
    assert (info["model_id"], info["max_total_tokens"]) == (BASE, CONTEXT)
    assert info["max_input_length"] == CONTEXT - 1


async def test_hugging_faces_own_client(house: House, adapter: Callable[[str], str]):
    digest = adapter("sql")
    async with served(house.app) as url, AsyncInferenceClient(model=url) as client:
        asked: dict[str, Any] = {"adapter_id": "sql", "max_new_tokens": 20}
        assert await client.text_generation("hi", **asked) == "hello world"
        whole = await client.text_generation("hi", details=True, **asked)
        assert whole.generated_text == "hello world"
        assert whole.details.finish_reason == "eos_token"
        stream = await client.text_generation("hi", stream=True, details=True, **asked)
        chunks = [chunk async for chunk in stream]
        assert [chunk.token.text for chunk in chunks] == [*HELLO, EOS]
        assert chunks[-1].generated_text == "hello world"
        with pytest.raises(HfHubHTTPError, match="'nobody' does not exist"):
            await client.text_generation("hi", adapter_id="nobody")
        house.engine.fail_after = (2, EngineFailed("a step failed"))
        stream = await client.text_generation("hi", stream=True, **asked)
        with pytest.raises(TextGenerationError, match="a step failed"):
            async for _ in stream:
                pass
    assert {request.adapter for request in house.engine.requests} == {digest}
