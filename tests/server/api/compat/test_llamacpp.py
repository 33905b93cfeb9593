"""llama.cpp server's documented calls: /completion, adapters by number."""

from typing import Any

import pytest

from tests.server.api.conftest import BASE, House
from tests.server.api.fakes import CONTEXT
from tests.server.api.sse import events
from tests.server.api.stores import publish

ZERO = {"scale": 0.0}
ONE = {"scale": 1.0}


async def post(house: House, path: str, body: Any) -> tuple[int, Any]:
    reply = await house.client.post(path, json=body)
    return reply.status_code, reply.json()["error"] if reply.is_error else reply.json()


async def numbers(house: House) -> dict[str, int]:
    listed = (await house.client.get("/lora-adapters")).json()
    return {one["path"]: one["id"] for one in listed}


async def test_adapters_have_numbers_that_are_never_another_ones(house: House):
    assert (await house.client.get("/lora-adapters")).json() == []
    publish(house.store, "sql")
    publish(house.store, "dates")
    listed = (await house.client.get("/lora-adapters")).json()
    assert [one["path"] for one in listed] == ["sql", "dates"]
    assert {one["scale"] for one in listed} == {0.0}
    before = await numbers(house)
    house.store.delete("dates")
    publish(house.store, "formal")
    after = await numbers(house)
    assert after["sql"] == before["sql"]
    assert after["formal"] not in before.values()


async def test_a_completion(house: House):
    digest = publish(house.store, "sql").digest
    number = (await numbers(house))["sql"]
    body = {
        "prompt": "Building a website can be done in 10 simple steps:",
        "n_predict": 64,
        "lora": [{"id": number, "scale": 1.0}],
    }
    status, reply = await post(house, "/completion", body)
    assert status == 200
    assert reply == {
        "index": 0,
        "content": "hello world",
        "tokens": [],
        "stop": True,
        "model": BASE,
        "adapter_version": digest,
        "tokens_predicted": 7,
        "tokens_evaluated": len(house.engine.requests[0].prompt),
        "tokens_cached": 0,
        "stop_type": "eos",
        "stopping_word": "",
        "truncated": False,
    }
    assert house.engine.requests[0].adapter == digest


async def test_its_defaults(house: House):
    await post(house, "/completions", {"prompt": [5, 6], "n_predict": -1, "seed": -1})
    request = house.engine.requests[0]
    assert (request.prompt, request.adapter) == ((5, 6), None)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.95)
    assert (sampling.min_p, sampling.seed, sampling.max_tokens) == (0.05, None, CONTEXT - 2)


async def test_a_stream_ends_with_a_chunk_that_says_how(house: House):
    body = {"prompt": "hi", "stream": True, "stop": ["wor"]}
    reply = await house.client.post("/completion", json=body)
    *chunks, last = events(reply.text)
    assert [(chunk["content"], chunk["stop"]) for chunk in chunks] == [
        ("hell", False), ("o", False), (" ", False),
    ]  # fmt: skip
    assert (last["content"], last["stop"]) == ("", True)
    assert (last["stop_type"], last["stopping_word"]) == ("word", "wor")
    assert (last["tokens_predicted"], last["tokens_evaluated"]) == (4, 2)


async def test_a_limit(house: House):
    _, reply = await post(house, "/completion", {"prompt": "hi", "n_predict": 2})
    assert (reply["content"], reply["stop_type"]) == ("hello", "limit")


async def test_every_field_reaches_the_engine(house: House):
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "presence_penalty": 0.2,
        "frequency_penalty": -0.3, "seed": 5, "ignore_eos": True,
    }  # fmt: skip
    renamed = {"n_predict": 7, "repeat_penalty": 1.1, "repeat_last_n": -1}
    status, _ = await post(house, "/completion", {"prompt": "hi"} | fields | renamed)
    assert status == 200
    sampling = house.engine.requests[0].sampling
    expected = fields | {"max_tokens": 7, "repetition_penalty": 1.1}
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/completion"])
async def test_lora_names_the_adapter_everywhere(house: House, path: str):
    digests = {name: publish(house.store, name).digest for name in ("sql", "dates")}
    ids = await numbers(house)
    prompt: dict[str, Any] = {"prompt": "hi", "model": BASE}
    if path.endswith("chat/completions"):
        prompt = {"messages": [{"role": "user", "content": "hi"}], "model": BASE}
    for lora, digest in [
        ([{"id": ids["dates"]} | ONE], digests["dates"]),
        ([{"id": ids["dates"]} | ZERO, {"id": ids["sql"], "scale": 1}], digests["sql"]),
        ([{"id": ids["sql"]} | ZERO], None),
        ([], None),
        (None, None),
    ]:
        status, reply = await post(house, path, prompt | {"lora": lora})
        assert (status, reply.get("adapter_version")) == (200, digest), lora


async def test_lora_and_a_name_must_agree(house: House):
    digest = publish(house.store, "sql").digest
    publish(house.store, "dates")
    ids = await numbers(house)
    body = {"model": "sql", "prompt": "hi"}
    same = body | {"lora": [{"id": ids["sql"]} | ONE]}
    assert (await post(house, "/v1/completions", same))[1]["adapter_version"] == digest
    for lora in ([{"id": ids["dates"]} | ONE], [{"id": ids["sql"]} | ZERO], []):
        status, error = await post(house, "/v1/completions", body | {"lora": lora})
        assert (status, error["param"]) == (400, "lora")


@pytest.mark.parametrize(
    ("lora", "status", "code", "param"),
    [
        ([{"id": 99} | ONE], 404, "model_not_found", "lora"),
        ([{"id": 1, "scale": 0.5}], 400, "unsupported_parameter", "lora[0].scale"),
        ([{"id": 1, "scale": 2}], 400, "unsupported_parameter", "lora[0].scale"),
        ([{"id": 1} | ONE, {"id": 2} | ONE], 400, "unsupported_parameter", "lora[1]"),
        ([{"id": 1} | ONE, {"id": 1} | ZERO], 400, "invalid_request", "lora"),
        ([{"id": -1} | ONE], 400, "invalid_request", "lora[0].id"),
        ([{"id": 1}], 400, "invalid_request", "lora[0].scale"),
        ([{"id": "1"} | ONE], 400, "invalid_request", "lora[0].id"),
    ],
)
@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
async def test_loras_that_are_not_served(
    house: House, path: str, lora: Any, status: int, code: str, param: str
):
    publish(house.store, "sql")
    publish(house.store, "dates")
    body = {"prompt": "hi", "model": BASE, "lora": lora}
    got, error = await post(house, path, body)
    assert (got, error["code"], error["param"]) == (status, code, param)


async def test_scales_for_all_requests_stay_zero(house: House):
    publish(house.store, "sql")
    for body in ([], [{"id": 1} | ZERO]):
        assert await post(house, "/lora-adapters", body) == (200, {"success": True})
    status, error = await post(house, "/lora-adapters", [{"id": 1} | ONE])
    assert (status, error["code"]) == (400, "unsupported_parameter")
    assert "lora with each request" in error["message"]
    status, error = await post(house, "/lora-adapters", {"adapters": []})
    assert (status, error["message"]) == (400, "the body must be a JSON array")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("n_probs", 2, "unsupported_parameter"),
        ("grammar", "root ::= x", "unsupported_parameter"),
        ("json_schema", {}, "unsupported_parameter"),
        ("mirostat", 1, "unsupported_parameter"),
        ("samplers", ["top_k"], "unsupported_parameter"),
        ("n_predict", 0, "unsupported_parameter"),
        ("max_tokens", 5, "invalid_request"),
        ("temperature", "0", "invalid_request"),
        ("prompt", [1, "two"], "invalid_request"),
        ("prompt", {"prompt_string": "x"}, "invalid_request"),
    ],
)
async def test_refusals(house: House, field: str, value: Any, code: str):
    status, error = await post(house, "/completion", {"prompt": "hi"} | {field: value})
    assert (status, error["code"]) == (400, code)
    assert error["param"].split("[")[0] == field


async def test_penalties_over_a_window_are_refused(house: House):
    plain = {"prompt": "hi", "repeat_last_n": 64}
    assert (await post(house, "/completion", plain))[0] == 200
    status, error = await post(house, "/completion", plain | {"repeat_penalty": 1.1})
    assert (status, error["param"]) == (400, "repeat_last_n")
