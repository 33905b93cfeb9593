"""What a completion or a chat answers, whole and streamed, over a scripted engine."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from adapters_store.errors import AdapterLoadFailed, EngineFailed, EngineUnavailable
from tests.server.api.conftest import BASE, House, make_house
from tests.server.api.fakes import CONTEXT
from tests.server.api.sse import events

MESSAGES = [{"role": "user", "content": "hi"}]


async def complete(house: House, **fields: Any) -> dict[str, Any]:
    reply = await house.client.post(
        "/v1/completions", json={"model": BASE, "prompt": "hi", "max_tokens": 100} | fields
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


async def streamed(house: House, **fields: Any) -> list[Any]:
    reply = await house.client.post(
        "/v1/completions",
        json={"model": BASE, "prompt": "hi", "max_tokens": 100, "stream": True} | fields,
    )
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events(reply.text)


async def test_a_completion(house: House):
    reply = await house.client.post("/v1/completions", json={"model": BASE, "prompt": "hi"})
    body = reply.json()
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": BASE,
        "adapter_version": None,
        "system_fingerprint": "base-bbbbbbbbbbbb",
        "choices": [{"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 7,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert reply.headers["x-adapterd-adapter-version"] == "base"
    assert reply.headers["x-adapterd-queue-ms"] == "4.000"
    assert reply.headers["x-adapterd-load-ms"] == "3.000"
    assert reply.headers["x-adapterd-prefill-ms"] == "2.000"
    assert float(reply.headers["x-adapterd-total-ms"]) > 0
    assert house.engine.requests[0].sampling.max_tokens == 16
    assert house.engine.closed == [house.engine.requests[0].id]


async def test_a_chat(house: House):
    body = {"model": BASE, "messages": MESSAGES}
    reply = (await house.client.post("/v1/chat/completions", json=body)).json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    request = house.engine.requests[0]
    rendered = house.text._tokenizer.decode(list(request.prompt))
    assert rendered == "<user>hi<end><assistant>"
    assert request.sampling.max_tokens == CONTEXT - len(request.prompt)


async def test_a_streamed_chat(house: House):
    body = {
        "model": BASE,
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = await house.client.post("/v1/chat/completions", json=body)
    *chunks, usage, done = events(reply.text)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 12)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["delta"].get("content", "") for one in choices) == "hello world"
    assert [one["finish_reason"] for one in choices] == [None] * (len(choices) - 1) + ["stop"]


async def test_cached_tokens_count_once_for_all_choices_of_a_prompt(house: House):
    house.engine.cached = {0: 1, 1: 2}
    body = await complete(house, prompt=["hi", "hi"], n=2)
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    *_, last, _ = await streamed(house, n=2, stream_options={"include_usage": True})
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


@pytest.mark.parametrize(
    ("given", "salt"),
    [({}, ""), ({"cache_salt": None}, ""), ({"cache_salt": "t" * 256}, "t" * 256)],
)
async def test_the_salt_reaches_the_engine(house: House, given: dict[str, Any], salt: str):
    await complete(house, **given)
    chat = {"model": BASE, "messages": MESSAGES} | given
    reply = await house.client.post("/v1/chat/completions", json=chat)
    assert reply.status_code == 200, reply.text
    assert [request.cache_salt for request in house.engine.requests] == [salt, salt]


async def test_every_field_reaches_the_engine(house: House):
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": -0.3, "seed": -5, "ignore_eos": True,
        "stop_token_ids": [3], "min_tokens": 2, "max_tokens": 7, "logprobs": 2,
    }  # fmt: skip
    await complete(house, n=2, **fields)
    request = house.engine.requests[0]
    assert request.n == 2
    expected = fields | {"stop_token_ids": (3,), "top_k": 0}
    assert {name: getattr(request.sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hi", ["hi"]),
        (["hi", "i"], ["hi", "i"]),
        ([72, 73], [[72, 73]]),
        ([[72], [73, 72]], [[72], [73, 72]]),
    ],
)
async def test_prompts_of_every_form(house: House, prompt: Any, texts: list):
    body = await complete(house, prompt=prompt)
    sent = [house.text._encode(one) if isinstance(one, str) else tuple(one) for one in texts]
    assert [request.prompt for request in house.engine.requests] == sent
    assert [choice["index"] for choice in body["choices"]] == list(range(len(sent)))


async def test_several_prompts_times_n(house: House):
    words = {"a": ["one", "two"], "b": ["three", "four"]}

    def script(request, index):
        return (*house.text._encode(words[house.text.decode(request.prompt)][index]), eos)

    eos, house.engine.script = house.engine.eos, script
    body = await complete(house, prompt=["a", "b"], n=2)
    assert [one["text"] for one in body["choices"]] == ["one", "two", "three", "four"]
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 3 + 3 + 5 + 4 + 4
    texts = ["", "", "", ""]
    for chunk in (await streamed(house, prompt=["a", "b"], n=2))[:-1]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["one", "two", "three", "four"]


@pytest.mark.parametrize("text", ["hello world", "héllo wörld 你好 🎉", "a\n\n b", "\ufffd x", ""])
@pytest.mark.parametrize("stop", [None, "wor", ["o w", "好 "], "\n"])
@pytest.mark.parametrize("per_step", [1, 4])
async def test_a_stream_adds_up_to_the_whole(house: House, text: str, stop: Any, per_step: int):
    house.say(text)
    house.engine.per_step = per_step
    whole = (await complete(house, stop=stop))["choices"][0]
    *chunks, done = await streamed(house, stop=stop)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(one["text"] for one in choices) == whole["text"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == "stop"
    assert done == "[DONE]"
    expected = text
    for one in [stop] if isinstance(stop, str) else stop or []:
        expected = expected.split(one)[0]
    assert whole["text"] == expected


async def test_a_stop_string_ends_the_engines_work(house: House):
    house.say("hello world " * 5)
    body = await complete(house, stop=["or"])
    assert body["choices"][0]["text"] == "hello w"
    assert body["usage"]["completion_tokens"] == 4
    assert house.engine.closed == [house.engine.requests[0].id]


async def test_what_came_in_one_step_with_a_stop_string_but_after_it_does_not_count(house: House):
    house.say("hello world " * 5)
    house.engine.per_step = 6
    body = await complete(house, stop=["or"], logprobs=0)
    assert body["choices"][0]["text"] == "hello w"
    assert body["choices"][0]["logprobs"]["tokens"] == ["hell", "o", " w"]
    assert body["usage"]["completion_tokens"] == 4
    assert house.engine.dropped == [(house.engine.requests[0].id, 0)]
    assert (await complete(house, max_tokens=2))["usage"]["completion_tokens"] == 2


async def test_a_stop_string_ends_its_own_choice_and_the_others_go_on(house: House):
    def script(_: Any, index: int) -> tuple[int, ...]:
        return (*house.text._encode("a.b" if index == 0 else "abcd"), house.engine.eos)

    house.engine.script = script
    choices = (await complete(house, stop=".", n=2))["choices"]
    assert [choice["text"] for choice in choices] == ["a", "abcd"]
    assert house.engine.dropped == [(house.engine.requests[0].id, 0)]


async def test_a_stop_string_does_not_count_before_min_tokens(house: House):
    house.say("a.b.c.d")
    assert (await complete(house, stop="."))["choices"][0]["text"] == "a"
    assert (await complete(house, stop=".", min_tokens=4))["choices"][0]["text"] == "a.b.c"


async def test_length_and_eos(house: House):
    body = await complete(house, max_tokens=2)
    assert body["choices"][0] | {"text": "hello", "finish_reason": "length"} == body["choices"][0]
    house.say("hi", eos=True)
    body = await complete(house, ignore_eos=True, max_tokens=3)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["text"] == "hi"  # a control token has no text


async def test_completion_logprobs(house: House):
    logprobs = (await complete(house, logprobs=2))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["hell", "o", " w", "or", "l", "d"]
    assert logprobs["token_logprobs"] == [-0.5] * 6
    assert logprobs["text_offset"] == [0, 4, 5, 7, 9, 10]
    assert [list(one.values()) for one in logprobs["top_logprobs"]] == [[-1.5, -0.5]] * 6
    chunks = await streamed(house, logprobs=2)
    gathered: dict[str, list] = {name: [] for name in logprobs}
    for chunk in chunks[:-1]:
        for name, values in chunk["choices"][0]["logprobs"].items():
            gathered[name] += values
    assert gathered == logprobs


async def test_chat_logprobs(house: House):
    house.say("é")
    body = {"model": BASE, "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    reply = (await house.client.post("/v1/chat/completions", json=body)).json()
    content = reply["choices"][0]["logprobs"]["content"]
    assert [one["bytes"] for one in content] == [[0xC3], [0xA9]]
    assert [one["token"] for one in content] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert [one["logprob"] for one in content] == [-0.5, -0.5]
    assert [len(one["top_logprobs"]) for one in content] == [1, 1]
    assert content[0]["top_logprobs"][0]["bytes"] == [0xC3]


async def test_a_logprob_of_minus_infinity_is_still_json(house: House):
    house.engine.logprob = -math.inf
    logprobs = (await complete(house, logprobs=1))["choices"][0]["logprobs"]
    assert set(logprobs["token_logprobs"]) == {-9999.0}
    assert all(set(one.values()) == {-9999.0} for one in logprobs["top_logprobs"])
    assert "Infinity" not in json.dumps(await streamed(house, logprobs=1))


async def test_logprobs_never_show_a_stop_string(house: House):
    for chunk in (await streamed(house, stop="world", logprobs=0))[:-1]:
        assert not {"or", "l", "d"} & set(chunk["choices"][0]["logprobs"]["tokens"])
    logprobs = (await complete(house, stop="world", logprobs=0))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["hell", "o", " w"]


async def test_echo(house: House):
    assert (await complete(house, echo=True))["choices"][0]["text"] == "hihello world"
    chunks = await streamed(house, echo=True, n=2)
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks[:-1]]
        assert "".join(c["text"] for c in mine if c["index"] == index) == "hihello world"
    ids = house.text._encode("né")
    assert (await complete(house, echo=True, prompt=list(ids)))["choices"][0]["text"][:2] == "né"


# --- which adapter answers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        {"model": "sql"},
        {"model": BASE, "adapter_id": "sql"},
        {"model": "sql", "adapter_id": "sql"},
        {"model": "sql@1"},
    ],
)
async def test_an_adapter_is_named(house: House, adapter: Callable[[str], str], named: dict):
    digest = adapter("sql")
    reply = await house.client.post("/v1/completions", json={"prompt": "hi"} | named)
    assert reply.json()["adapter_version"] == digest
    assert reply.json()["model"] == named["model"]
    assert reply.headers["x-adapterd-adapter-version"] == digest
    assert house.engine.requests[0].adapter == digest


@pytest.mark.parametrize(
    ("named", "status", "code", "param"),
    [
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"model": "meta/Llama"}, 404, "model_not_found", "model"),
        ({"model": "sql@ffffffff"}, 404, "model_not_found", "model"),
        ({"model": "sql@ffff"}, 400, "invalid_request", "model"),  # too short to be a digest
        ({"model": BASE, "adapter_id": "nobody"}, 404, "model_not_found", "adapter_id"),
        ({"model": "dates", "adapter_id": "sql"}, 400, "invalid_request", "adapter_id"),
    ],
)
async def test_a_name_that_does_not_serve(
    house: House, adapter: Callable[[str], str], named: dict, status: int, code: str, param: str
):
    adapter("sql")
    adapter("dates")
    reply = await house.client.post("/v1/completions", json={"prompt": "hi"} | named)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


async def test_models(house: House, adapter: Callable[[str], str]):
    digest = adapter("sql")
    listed = (await house.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    base, card = listed["data"]
    assert base | {"id": BASE, "parent": None, "max_model_len": CONTEXT} == base
    assert card | {"id": "sql", "parent": BASE, "root": f"sql@{digest[:12]}"} == card
    assert set(base) == set(card)
    for one in (base, card):
        assert (await house.client.get(f"/v1/models/{one['id']}")).json() == one
    for version in ("sql@1", card["root"]):  # whatever a request may name
        shown = (await house.client.get(f"/v1/models/{version}")).json()
        assert shown == card | {"id": version}


# --- lengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [
        (CONTEXT, None, [str(CONTEXT)]),
        (CONTEXT + 70, None, [str(CONTEXT), str(CONTEXT + 70)]),
        (100, 29, [str(CONTEXT), "100", "29", "129"]),
    ],
)
async def test_too_long(house: House, prompt: int, max_tokens: int | None, said: list[str]):
    body = {"model": BASE, "prompt": [5] * prompt, "max_tokens": max_tokens}
    reply = await house.client.post("/v1/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert all(length in error["message"] for length in said)


async def test_just_fits(house: House):
    await complete(house, prompt=[5] * 100, max_tokens=28)
    await complete(house, prompt=[5] * 127, max_tokens=None)
    assert [request.sampling.max_tokens for request in house.engine.requests] == [28, 1]


async def test_a_long_text_is_tokenised_too(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.api.text.INLINE_CHARACTERS", 100)
    reply = await house.client.post("/v1/completions", json={"model": BASE, "prompt": "é" * 500})
    assert "1000" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_what_cannot_fit_is_not_tokenised(
    house: House, monkeypatch: pytest.MonkeyPatch, path: str
):
    longest = len("<assistant>")  # of the vocabulary's entries
    fits, endless = "a" * (CONTEXT * longest - 100), "a" * (CONTEXT * longest + 1)

    async def ask(text: str) -> dict[str, Any]:
        prompt = {"prompt": text}
        if path != "completions":
            prompt = {"messages": [{"role": "user", "content": text}]}
        reply = await house.client.post(f"/v1/{path}", json={"model": BASE, **prompt})
        assert reply.json()["error"]["code"] == "context_length_exceeded"
        return reply.json()["error"]

    assert "characters" not in (await ask(fits))["message"]  # tokenised, then counted
    monkeypatch.setattr(house.text, "_encode", None)
    error = await ask(endless)
    assert error["param"] == ("prompt" if path == "completions" else "messages")
    assert f"{CONTEXT * longest} characters" in error["message"]


# --- chat templates ----------------------------------------------------------------------------


async def test_no_chat_template(tmp_path):
    async with make_house(tmp_path, chat_template=None) as house:
        body = {"model": BASE, "messages": MESSAGES}
        reply = await house.client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 400
        assert "no chat template" in reply.json()["error"]["message"]


async def test_a_template_that_refuses(house: House):
    messages = [*MESSAGES, {"role": "developer", "content": "x"}]
    body = {"model": BASE, "messages": messages}
    reply = await house.client.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "messages")
    assert "system must come first" in error["message"]


# --- errors of the engine ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"), [(EngineUnavailable("x"), 503), (AdapterLoadFailed("x"), 500)]
)
async def test_an_early_error_keeps_its_status(house: House, stream: bool, error: Any, status: int):
    house.engine.fail_before = error
    body = {"model": BASE, "prompt": "hi", "stream": stream}
    reply = await house.client.post("/v1/completions", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == error.code
    assert house.app.state.services.admission.active == 0


async def test_a_late_error_ends_the_stream(house: House):
    house.engine.fail_after = (2, EngineFailed("a step failed"))
    reply = await house.client.post(
        "/v1/completions", json={"model": BASE, "prompt": "hi", "stream": True}
    )
    *chunks, error = events(reply.text)
    assert reply.status_code == 200
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["hell", "o"]
    assert error["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_a_plain_500(house: House, stream: bool, caplog: pytest.LogCaptureFixture):
    house.engine.fail_after = (1, ZeroDivisionError("secret"))
    body = {"model": BASE, "prompt": "hi", "stream": stream}
    headers = {"x-request-id": "find-me"}
    reply = await house.client.post("/v1/completions", json=body, headers=headers)
    assert reply.headers["x-request-id"] == "find-me"
    assert reply.status_code == (200 if stream else 500)
    error = json.loads(reply.text.split("data: ")[-1]) if stream else reply.json()
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in reply.text
    assert "find-me" in caplog.text
    assert "secret" in caplog.text


async def test_one_prompt_that_fails_ends_the_others(house: House):
    house.engine.fail_after = (3, EngineFailed("a step failed"))
    body = {"model": BASE, "prompt": ["hi", "ho", "ha"]}
    reply = await house.client.post("/v1/completions", json=body)
    assert reply.status_code == 500
    assert sorted(house.engine.closed) == [request.id for request in house.engine.requests]
