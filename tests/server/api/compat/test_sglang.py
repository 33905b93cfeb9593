"""SGLang's documented calls: loading, `base:adapter`, and its own /generate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.api.conftest import BASE, House
from tests.server.api.fakes import CONTEXT
from tests.server.api.sse import events
from tests.server.api.stores import publish


async def post(house: House, path: str, **body: Any) -> tuple[int, Any]:
    reply = await house.client.post(path, json=body)
    return reply.status_code, reply.json()["error"] if reply.is_error else reply.json()


async def test_load_and_unload_say_what_is_loaded(house: House, root: Path):
    digest = publish(house.store, "uploaded").digest
    body = {"lora_name": "lora0", "lora_path": f"{root}/sql"}
    status, reply = await post(house, "/load_lora_adapter", **body)
    assert status == 200
    assert reply == {
        "success": True,
        "error_message": None,
        "loaded_adapters": {"lora0": f"{root}/sql", "uploaded": f"uploaded@{digest[:12]}"},
    }
    status, reply = await post(house, "/unload_lora_adapter", lora_name="lora0")
    assert (status, reply["success"], list(reply["loaded_adapters"])) == (200, True, ["uploaded"])


async def test_a_name_that_is_loaded(house: House, root: Path):
    first = {"lora_name": "lora0", "lora_path": f"{root}/sql"}
    await post(house, "/load_lora_adapter", **first)
    second = {"lora_name": "lora0", "lora_path": f"{root}/dates"}
    status, error = await post(house, "/load_lora_adapter", **second)
    assert (status, error["param"]) == (400, "lora_name")
    assert error["message"] == "LoRA with name lora0 already exists."
    assert (await post(house, "/load_lora_adapter", **second, upsert=True))[0] == 200
    assert house.store.get("lora0").current.number == 2


async def test_a_pinned_adapter_keeps_its_slot_until_it_is_unloaded(house: House, root: Path):
    body = {"lora_name": "lora0", "lora_path": f"{root}/sql", "pinned": True}
    assert (await post(house, "/load_lora_adapter", **body))[0] == 200
    digest = house.store.get("lora0").current.digest
    assert house.engine.stats.pinned == (digest,)
    assert (await post(house, "/unload_lora_adapter", lora_name="lora0"))[0] == 200
    assert house.engine.stats.pinned == ()


async def test_refusals(house: House, root: Path):
    path = f"{root}/sql"
    refused: list[tuple[dict[str, Any], int, str, str]] = [
        ({"lora_name": "LoRA0", "lora_path": path}, 400, "invalid_request", "lora_name"),
        ({"lora_name": "lora0", "lora_path": "/etc"}, 400, "invalid_request", "lora_path"),
        ({"lora_name": "lora0", "lora_path": f"{root}/x"}, 404, "adapter_not_found", "lora_path"),
        (
            {"lora_name": "lora0", "lora_path": path, "lora_id": "x"},
            400,
            "unsupported_parameter",
            "lora_id",
        ),
    ]
    for body, status, code, param in refused:
        got, error = await post(house, "/load_lora_adapter", **body)
        assert (got, error["code"], error["param"]) == (status, code, param), body
    status, error = await post(house, "/unload_lora_adapter", lora_name="nobody")
    assert (status, error["message"]) == (404, "LoRA with name nobody does not exist.")


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_an_adapter_named_after_its_base(
    house: House, adapter: Callable[[str], str], path: str
):
    digest = adapter("sql")
    prompt: dict[str, Any] = {"prompt": "hi"}
    if path != "completions":
        prompt = {"messages": [{"role": "user", "content": "hi"}]}
    for name, version in [(f"{BASE}:sql", digest), (f"{BASE}:sql@1", digest), (BASE, None)]:
        status, reply = await post(house, f"/v1/{path}", model=name, **prompt)
        assert (status, reply["adapter_version"], reply["model"]) == (200, version, name)
    for name in (f"{BASE}:", f"{BASE}:nobody", f"{BASE}:{BASE}", "other:sql"):
        status, error = await post(house, f"/v1/{path}", model=name, **prompt)
        assert (status, error["param"]) == (404, "model"), name


async def test_generate(house: House, adapter: Callable[[str], str]):
    digest = adapter("lora0")
    status, reply = await post(
        house,
        "/generate",
        text="The capital of France is",
        sampling_params={"max_new_tokens": 32, "temperature": 0},
        lora_path="lora0",
    )
    assert status == 200
    assert reply["meta_info"].pop("id").startswith("gen-")
    assert reply == {
        "text": "hello world",
        "meta_info": {
            "finish_reason": {"type": "stop"},
            "prompt_tokens": len(house.engine.requests[0].prompt),
            "completion_tokens": 7,
            "cached_tokens": 0,
            "adapter_version": digest,
        },
    }
    request = house.engine.requests[0]
    assert (request.adapter, request.sampling.temperature) == (digest, 0)
    assert request.sampling.max_tokens == 32


async def test_generate_streams_all_text_so_far(house: House):
    body = {"text": "hi", "stream": True, "sampling_params": {"stop": "wor"}}
    reply = await house.client.post("/generate", json=body)
    *chunks, last, done = events(reply.text)
    assert [chunk["text"] for chunk in chunks] == ["hell", "hello", "hello "]
    assert {str(chunk["meta_info"]["finish_reason"]) for chunk in chunks} == {"None"}
    assert (last["text"], done) == ("hello ", "[DONE]")
    assert last["meta_info"]["finish_reason"] == {"type": "stop", "matched": "wor"}
    assert last["meta_info"]["completion_tokens"] == 4


async def test_generate_from_ids_and_its_defaults(house: House):
    status, reply = await post(house, "/generate", input_ids=[5, 6, 7])
    assert (status, reply["meta_info"]["prompt_tokens"]) == (200, 3)
    request = house.engine.requests[0]
    assert (request.prompt, request.adapter) == ((5, 6, 7), None)
    assert (request.sampling.max_tokens, request.sampling.temperature) == (CONTEXT - 3, 1.0)


async def test_an_answer_that_its_limit_ended(house: House):
    asked = {"max_new_tokens": 2}
    _, reply = await post(house, "/generate", text="hi", sampling_params=asked)
    assert reply["text"] == "hello"
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 2}


async def test_every_sampling_field_reaches_the_engine(house: House):
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": -0.3, "ignore_eos": True,
        "stop_token_ids": [3],
    }  # fmt: skip
    renamed = {"max_new_tokens": 7, "min_new_tokens": 2, "sampling_seed": 5}
    status, _ = await post(house, "/generate", text="hi", sampling_params=fields | renamed)
    assert status == 200
    sampling = house.engine.requests[0].sampling
    expected = fields | {"stop_token_ids": (3,), "max_tokens": 7, "min_tokens": 2, "seed": 5}
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"text": "hi", "input_ids": [1]}, 400, "input_ids"),
        ({"text": ["hi", "ho"]}, 400, "text"),
        ({"text": "hi", "lora_path": "nobody"}, 404, "lora_path"),
        ({"text": "hi", "sampling_params": {"regex": "a"}}, 400, "sampling_params.regex"),
        ({"text": "hi", "sampling_params": {"n": 2}}, 400, "sampling_params.n"),
        ({"text": "hi", "return_logprob": True}, 400, "return_logprob"),
        ({"text": "hi", "parameters": {}}, 400, "parameters"),
        ({"input_ids": [5] * 128}, 400, "input_ids"),
        ({"text": "hi" * 100}, 400, "text"),
    ],
)
async def test_generate_refuses(house: House, body: dict[str, Any], status: int, param: str):
    got, error = await post(house, "/generate", **body)
    assert (got, error["param"]) == (status, param)
