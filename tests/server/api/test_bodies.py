"""What is malformed gets 400, 413 or 415, and the error names the field."""

import json
from typing import Any

import httpx2
import pytest

from server.api.services import ApiLimits
from tests.server.api.conftest import BASE, House, make_house

COMPLETION = {"model": BASE, "prompt": "hi"}
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def expect(reply: httpx2.Response, status: int, code: str, param: str | None) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert list(reply.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["code"], error["param"]) == (code, param)
    assert reply.headers["x-request-id"]
    return error["message"]


FIELDS = [
    ("n", True),
    ("n", "2"),
    ("n", 1.0),
    ("n", 0),
    ("n", 129),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", "16"),
    ("min_tokens", -1),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", 2.1),
    ("temperature", -0.1),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 1.5),
    ("repetition_penalty", 0),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -2.5),
    ("seed", 1.5),
    ("stop", 3),
    ("stop", ""),
    ("stop", ["a"] * 17),
    ("stop_token_ids", "a"),
    ("ignore_eos", 1),
    ("stream", "true"),
    ("stream_options", []),
    ("model", 3),
    ("model", ""),
    ("adapter_id", 3),
    ("user", 3),
    ("metadata", "x"),
    ("cache_salt", 3),
    ("cache_salt", ""),
    ("cache_salt", "s" * 257),
]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize(("field", "value"), FIELDS, ids=lambda value: json.dumps(value)[:20])
async def test_a_bad_field_is_named(house: House, path: str, field: str, value: Any):
    body = (COMPLETION if path == "completions" else CHAT) | {field: value}
    reply = await house.client.post(f"/v1/{path}", json=body)
    expect(reply, 400, "invalid_request", field)
    assert not house.engine.requests


NESTED = [
    ("completions", {"prompt": 3}, "prompt"),
    ("completions", {"prompt": []}, "prompt"),
    ("completions", {"prompt": None}, "prompt"),
    ("completions", {"prompt": ["a", 1]}, "prompt[1]"),
    ("completions", {"prompt": [1, True]}, "prompt[1]"),
    ("completions", {"prompt": [1, -1]}, "prompt[1]"),
    ("completions", {"prompt": [[1], []]}, "prompt[1]"),
    ("completions", {"prompt": [[1], [2, "a"]]}, "prompt[1][1]"),
    ("completions", {"prompt": [299, 300]}, "prompt"),  # outside the vocabulary
    ("completions", {"prompt": ""}, "prompt"),
    ("completions", {"logprobs": True}, "logprobs"),
    ("completions", {"logprobs": 21}, "logprobs"),
    ("completions", {"stop_token_ids": [1, -2]}, "stop_token_ids[1]"),
    ("completions", {"stop_token_ids": [300]}, "stop_token_ids"),
    ("completions", {"stop": ["a", ""]}, "stop[1]"),
    ("completions", {"min_tokens": 20}, "min_tokens"),  # over the default max_tokens
    ("completions", {"n": 128, "prompt": ["a", "b"]}, "n"),  # over max_choices together
    ("completions", {"stream": True, "stream_options": {"include_usage": 1}},
     "stream_options.include_usage"),
    ("completions", {"unheard_of": 1}, "unheard_of"),
    ("completions", {"unheard_of": None}, "unheard_of"),
    ("completions", {"messages": []}, "messages"),
    ("completions", {"max_completion_tokens": 3}, "max_completion_tokens"),
    ("chat/completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": "hi"}, "messages"),
    ("chat/completions", {"messages": ["hi"]}, "messages[0]"),
    ("chat/completions", {"messages": [{"content": "a"}]}, "messages[0].role"),
    ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("chat/completions", user(None), "messages[0].content"),
    ("chat/completions", user(3), "messages[0].content"),
    ("chat/completions", user([]), "messages[0].content"),
    ("chat/completions", user([{"type": "text"}]), "messages[0].content[0].text"),
    ("chat/completions", user([{"type": "text", "text": "a", "x": 1}]),
     "messages[0].content[0].x"),
    ("chat/completions", {"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role"),
    ("chat/completions", {"logprobs": 3}, "logprobs"),
    ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("chat/completions", {"prompt": "x"}, "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change", "param"), NESTED, ids=lambda v: json.dumps(v)[:40])
async def test_a_bad_part_is_named_by_its_path(
    house: House, path: str, change: dict[str, Any], param: str
):
    body = (COMPLETION if path == "completions" else CHAT) | change
    expect(await house.client.post(f"/v1/{path}", json=body), 400, "invalid_request", param)
    assert not house.engine.requests


TOGETHER = [
    ("completions", {"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ("chat/completions", {"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    ("chat/completions", {"max_tokens": 2, "max_completion_tokens": 3}, None, "differ"),
]


@pytest.mark.parametrize(("path", "change", "param", "said"), TOGETHER)
async def test_fields_that_do_not_go_together(
    house: House, path: str, change: dict, param: str | None, said: str
):
    body = (COMPLETION if path == "completions" else CHAT) | change
    reply = await house.client.post(f"/v1/{path}", json=body)
    assert said in expect(reply, 400, "invalid_request", param)


UNSUPPORTED = [
    ("completions", {"suffix": "x"}, "suffix"),
    ("completions", {"best_of": 3}, "best_of"),
    ("completions", {"logit_bias": {"1": 5}}, "logit_bias"),
    ("completions", {"echo": True, "logprobs": 1}, "logprobs"),
    ("completions", {"prompt_logprobs": 1}, "prompt_logprobs"),
    ("completions", {"response_format": {"type": "json_object"}}, "response_format"),
    ("completions", {"guided_json": {}}, "guided_json"),
    ("completions", {"skip_special_tokens": False}, "skip_special_tokens"),
    ("completions", {"skip_special_tokens": 1}, "skip_special_tokens"),  # 1 is not true
    ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
    ("chat/completions", {"tool_choice": "auto"}, "tool_choice"),
    ("chat/completions", {"functions": [{}]}, "functions"),
    ("chat/completions", {"response_format": {"type": "json_schema"}}, "response_format"),
    ("chat/completions", {"modalities": ["text", "audio"]}, "modalities"),
    ("chat/completions", {"audio": {"voice": "x"}}, "audio"),
    ("chat/completions", {"store": True}, "store"),
    ("chat/completions", {"echo": True}, "echo"),
    ("chat/completions", {"stream": True, "stream_options": {"include_obfuscation": True}},
     "stream_options.include_obfuscation"),
    ("chat/completions", user([{"type": "image_url", "image_url": {"url": "x"}}]),
     "messages[0].content[0].type"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ("chat/completions",
     {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]},
     "messages[0].tool_calls"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "change", "param", "says"),
    [
        ("completions", {"prompt": []}, "prompt", "prompt: must have at least 1 item, not 0"),
        ("completions", {"stop": ""}, "stop", "stop: must have at least 1 character"),
        ("completions", {"prompt": ["a", "b", ""]}, "prompt[2]", "prompt[2]: no tokens"),
        ("completions", {"prompt": [[5], [5] * 200]}, "prompt[1]", "the prompt has 200"),
    ],
)
async def test_an_error_names_its_field_in_plain_words(
    house: House, path: str, change: dict[str, Any], param: str, says: str
):
    body = (COMPLETION if path == "completions" else CHAT) | change
    reply = await house.client.post(f"/v1/{path}", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert says in error["message"]


@pytest.mark.parametrize(("path", "change", "param"), UNSUPPORTED, ids=lambda v: str(v)[:40])
async def test_what_is_not_served_is_refused_by_name(
    house: House, path: str, change: dict[str, Any], param: str
):
    body = (COMPLETION if path == "completions" else CHAT) | change
    expect(await house.client.post(f"/v1/{path}", json=body), 400, "unsupported_parameter", param)


HARMLESS = [
    ("completions", {"suffix": None, "logit_bias": {}, "best_of": 1, "user": "u", "seed": None}),
    ("completions", {"best_of": 2, "n": 2, "response_format": {"type": "text"}}),
    ("completions", {"stop": None, "max_tokens": None, "temperature": None, "adapter_id": None}),
    ("completions", {"temperature": 1, "top_p": 1, "top_k": -1, "metadata": {"a": "b"}}),
    ("chat/completions", {"tools": [], "tool_choice": "none", "service_tier": "auto"}),
    ("chat/completions", {"store": False, "modalities": ["text"], "metadata": {}}),
    ("chat/completions",
     {"messages": [
         {"role": "user", "content": "a", "name": "Ann"},
         {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "audio": None,
          "annotations": []},
         {"role": "user", "content": [{"type": "text", "text": "c"}]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change"), HARMLESS, ids=lambda value: str(value)[:40])
async def test_what_changes_nothing_is_accepted(house: House, path: str, change: dict[str, Any]):
    body = (COMPLETION if path == "completions" else CHAT) | change
    reply = await house.client.post(f"/v1/{path}", json=body)
    assert reply.status_code == 200, reply.text


RAW = [
    (b"", None),
    (b"{", None),
    (b"[]", None),
    (b'"x"', None),
    (b"null", None),
    (b'{"model": "m", "model": "m"}', "model"),
    (b'{"model": "m", "temperature": NaN}', "temperature"),
    (b'{"model": "m", "temperature": 1e999}', "temperature"),
    (b'{"model": "\xff"}', None),
    (b'{"model": "\\ud800"}', None),
    (b"[" * 65 + b"]" * 65, None),
    (b"[" * 100_000, None),
    (b'{"model": "m", "n": ' + b"9" * 5000 + b"}", "n"),
    (b'\xef\xbb\xbf{"model": "m"}', None),
]


@pytest.mark.parametrize(("body", "param"), RAW, ids=lambda value: str(value)[:30])
async def test_what_is_no_strict_json(house: House, body: bytes, param: str | None):
    reply = await house.client.post("/v1/completions", content=body, headers=JSON)
    expect(reply, 400, "invalid_request", param)


MEDIA = [
    ({}, "missing"),
    ({"content-type": "text/plain"}, "text/plain"),
    ({"content-type": "application/x-www-form-urlencoded"}, "x-www-form-urlencoded"),
    ({"content-type": "multipart/form-data; boundary=x"}, "multipart/form-data"),
    (JSON | {"content-encoding": "gzip"}, "gzip"),
]


@pytest.mark.parametrize(("headers", "said"), MEDIA, ids=lambda value: str(value)[:40])
async def test_other_media(house: House, headers: dict[str, str], said: str):
    reply = await house.client.post(
        "/v1/completions", content=json.dumps(COMPLETION).encode(), headers=headers
    )
    assert said in expect(reply, 415, "unsupported_media_type", None)


async def test_a_charset_is_fine(house: House):
    reply = await house.client.post(
        "/v1/completions",
        content=json.dumps(COMPLETION),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit(tmp_path, declared: bool):
    body = json.dumps(COMPLETION | {"user": "x" * 2000}).encode()

    async def pieces():
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with make_house(tmp_path, limits=ApiLimits(max_body_bytes=1000)) as house:
        reply = await house.client.post(
            "/v1/completions", content=body if declared else pieces(), headers=JSON
        )
        assert "1000 bytes" in expect(reply, 413, "too_large", None)
        assert not house.engine.requests


async def test_a_long_unknown_field_makes_a_short_error(house: House):
    reply = await house.client.post("/v1/completions", json=COMPLETION | {"é" * 100_000: 1})
    assert reply.status_code == 400
    assert len(reply.content) <= 4096


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/adapters/x", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
async def test_no_such_route(house: House, method: str, path: str, status: int, code: str):
    reply = await house.client.request(method, path)
    param = "model" if code == "model_not_found" else None
    expect(reply, status, code, param)
    assert status != 405 or reply.headers["allow"]
