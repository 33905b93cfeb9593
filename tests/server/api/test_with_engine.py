"""The app over a real engine process: what the `openai` client reads is what peft says alone."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import openai
import pytest
import pytest_asyncio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save

from adapters_store.blobs import place_of
from adapters_store.store import AdapterStore
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits
from server.api.app import create_app
from server.api.text import TextCodec
from server.engine.client import EngineClient
from server.engine.messages import EngineConfig
from server.metrics import Metrics
from tests.e2e.tiny_base import make_tiny_adapters, make_tiny_base
from tests.server.api.conftest import served, until
from tests.support.reference import Reference

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASE = "tiny"
PROMPT = "One frozen base"


@dataclass(frozen=True)
class Live:
    app: FastAPI
    engine: EngineClient
    text: TextCodec
    reference: Reference
    openai: openai.AsyncOpenAI
    http: httpx2.AsyncClient

    def expected(self, adapter: str | None, prompt: tuple[int, ...], tokens: int) -> str:
        answer = self.reference.answer(adapter, prompt, tokens, ignore_eos=True)
        assert min(answer.margins) > 1e-3, "too close to call: choose another prompt"
        return self.text.decode(answer.tokens)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    folders = make_tiny_adapters(base, tmp_path_factory.mktemp("adapters"))
    store = AdapterStore(tmp_path_factory.mktemp("data"), base_name=BASE)
    config = EngineConfig(
        model=str(base),
        blobs=str(store.blob_root),
        dtype="float32",
        device="cpu",
        max_resident_adapters=2,
        kv_cache_bytes=32 << 20,
        threads=1,
    )
    engine = EngineClient(config)
    text = TextCodec.load(str(base))
    app = create_app(
        engine=engine,
        store=store,
        text=text,
        base_name=BASE,
        check=partial(methods.check, limits=SlotLimits(slots=2, rows=128, row_bytes=1)),
        metrics=Metrics(
            CollectorRegistry(), model_name=BASE, engine=engine, max_resident_adapters=2
        ),
    )
    await engine.start()
    async with (
        served(app) as url,
        httpx2.AsyncClient(base_url=url, timeout=60) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        for name, folder in folders.items():
            files = [("files", (one.name, one.read_bytes())) for one in folder.iterdir()]
            reply = await http.post("/v1/adapters", data={"name": name}, files=files)
            assert reply.status_code == 201, reply.text
        yield Live(app, engine, text, Reference(base, folders), client, http)
    await engine.stop()
    store.close()


GREEDY: dict = {"temperature": 0, "extra_body": {"ignore_eos": True}}


async def test_base_and_adapters_at_once_answer_as_alone(live: Live):
    names = [None, *live.reference._folders] * 2
    prompt = await asyncio.to_thread(live.text._encode, PROMPT)
    replies = await asyncio.gather(
        *(
            live.openai.completions.create(
                model=name or BASE, prompt=PROMPT, max_tokens=12, **GREEDY
            )
            for name in names
        )
    )
    for name, reply in zip(names, replies, strict=True):
        assert reply.choices[0].text == live.expected(name, prompt, 12)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 12


async def test_a_streamed_chat_equals_the_whole(live: Live):
    name = next(iter(live.reference._folders))
    messages: list = [{"role": "user", "content": "hi"}]
    asked: dict = {"model": name, "messages": messages, "max_tokens": 10, "n": 3} | GREEDY
    whole = await live.openai.chat.completions.create(**asked)
    texts = ["", "", ""]
    async for chunk in await live.openai.chat.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    prompt = live.text._encode("<s>user: hi\n<s>assistant: ")
    assert texts == [live.expected(name, prompt, 10)] * 3


async def test_a_stop_string(live: Live):
    prompt = live.text._encode(PROMPT)
    text = live.expected(None, prompt, 12)
    assert len(text) > 5
    reply = await live.openai.completions.create(
        model=BASE, prompt=PROMPT, max_tokens=12, stop=text[3:5], **GREEDY
    )
    assert reply.choices[0].text == text[: text.index(text[3:5])]
    assert reply.choices[0].finish_reason == "stop"


async def test_logprobs(live: Live):
    reply = await live.openai.completions.create(
        model=BASE, prompt=PROMPT, max_tokens=4, logprobs=3, **GREEDY
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert logprob is not None
        assert max(top.values()) == pytest.approx(logprob)  # greedy takes the likeliest
        assert top[token] == pytest.approx(logprob)


async def test_a_prompt_asked_again_is_cached_for_its_own_adapter_and_salt(live: Live):
    name = next(iter(live.reference._folders))
    prompt = await asyncio.to_thread(live.text._encode, 3 * PROMPT)
    answer = live.expected(name, prompt, 8)

    async def cached(model: str, **more: str) -> int | None:
        extra: dict = {"extra_body": {"ignore_eos": True} | more}
        reply = await live.openai.completions.create(
            model=model, prompt=3 * PROMPT, max_tokens=8, temperature=0, **extra
        )
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        if model == name:
            assert reply.choices[0].text == answer
        return reply.usage.prompt_tokens_details.cached_tokens

    askers: list[dict[str, str]] = [
        {"model": BASE}, {"model": name}, {"model": name, "cache_salt": "tenant"},
    ]  # fmt: skip
    assert [await cached(**asker) for asker in askers] == [0, 0, 0]
    assert [await cached(**asker) for asker in askers] == [32, 32, 32]
    await until(lambda: live.engine.stats.prefix_hits >= 3 * 32)
    assert "vllm:prefix_cache_hits_total" in (await live.http.get("/metrics")).text


async def test_a_client_that_leaves_frees_the_engine(live: Live):
    body = {"model": BASE, "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with live.http.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            assert not line or json.loads(line.removeprefix("data: "))["choices"]
            if live.engine.stats.running == 1:
                break
    await until(lambda: live.app.state.services.admission.active == 0)
    await until(lambda: live.engine.stats.running == 0 and live.engine.stats.kv_blocks_used == 0)


async def test_residency_and_metrics(live: Live):
    listed = (await live.http.get("/v1/adapters")).json()["data"]
    assert "slot" in {one["residency"] for one in listed}
    for one in listed:
        tiers = {"slot": {"disk", "host"}, "host": {"disk"}, "disk": set()}[one["residency"]]
        assert tiers <= one["load_seconds"].keys(), one
        assert all(0 < seconds < 60 for seconds in one["load_seconds"].values())
    text = (await live.http.get("/metrics")).text
    assert 'vllm:lora_adapter_loaded{adapter_name="' in text
    assert "adapterd_engine_steps_total 0.0" not in text


RELOADS = 200


async def test_a_name_that_is_moved_all_the_time_never_mixes_versions(live: Live):
    """Every reply is, to the token, what peft says for the version that the reply names."""
    golden: dict[str, str] = {}
    prompt = live.text._encode(PROMPT)
    for name, folder in live.reference._folders.items():
        files = [("files", (one.name, one.read_bytes())) for one in folder.iterdir()]
        reply = await live.http.post("/v1/adapters", data={"name": "moved"}, files=files)
        golden[reply.json()["digest"]] = live.expected(name, prompt, 12)
    assert len(set(golden.values())) == len(golden) >= 2
    answered: list[tuple[str, str]] = []
    done = False

    async def ask() -> None:
        while not done:
            reply = await live.openai.completions.create(
                model="moved", prompt=PROMPT, max_tokens=12, **GREEDY
            )
            assert reply.model_extra is not None
            answered.append((reply.model_extra["adapter_version"], reply.choices[0].text))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        for move in range(RELOADS):
            reply = await live.http.put(
                "/v1/adapters/moved/aliases/current", json={"version": 1 + move % len(golden)}
            )
            assert reply.status_code == 200
            await asyncio.sleep(0.005)
        done = True
    assert {version for version, _ in answered} == golden.keys()
    assert [text for _, text in answered] == [golden[version] for version, _ in answered]


async def test_a_comparison_parts_where_the_answers_do(live: Live):
    name = next(iter(live.reference._folders))
    prompt = live.text._encode(PROMPT)
    ours = live.reference.answer(name, prompt, 12, ignore_eos=True).tokens
    base = live.reference.answer(None, prompt, 12, ignore_eos=True).tokens
    parted = next(at for at, (a, b) in enumerate(zip(ours, base, strict=True)) if a != b)
    reply = await live.http.post(
        f"/v1/adapters/{name}/compare", json={"prompt": PROMPT, "max_tokens": parted + 1}
    )
    found = reply.json()
    assert reply.status_code == 200, found
    assert found["parts_at"]["index"] == parted
    assert found["parts_at"]["adapter"]["id"] == ours[parted]
    assert found["parts_at"]["against"]["id"] == base[parted]
    assert found["kl_divergence"]["nats"] > 0


async def test_a_load_report_tells_what_the_adapter_does_to_each_layer(live: Live):
    name = next(iter(live.reference._folders))
    report = (await live.http.get(f"/v1/adapters/{name}/versions/1")).json()["report"]
    assert report["modules"] <= report["modules_of_base"]
    assert [layer["layer"] for layer in report["layers"]] == sorted(
        layer["layer"] for layer in report["layers"]
    )
    assert all(layer["delta_norm"] > 0 for layer in report["layers"])
    assert all(0 < layer["relative"] < 100 for layer in report["layers"])


async def test_prefetch_and_pin_by_name(live: Live):
    first, second, *_ = live.reference._folders
    reply = await live.http.post(f"/v1/adapters/{first}/pin", json={"ttl_seconds": 600})
    pinned = reply.json()
    assert (reply.status_code, pinned["residency"], pinned["pinned"]) == (200, "slot", True)
    refused = await live.http.post(f"/v1/adapters/{second}/pin")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert "2 slots" in refused.json()["error"]["message"]
    for name in live.reference._folders:  # each takes the other slot
        reply = await live.http.post(f"/v1/adapters/{name}/prefetch")
        assert (reply.status_code, reply.json()["residency"]) == (200, "slot"), reply.text
    assert (await live.http.get(f"/v1/adapters/{first}")).json()["residency"] == "slot"
    assert "adapterd_slots_pinned 1.0" in (await live.http.get("/metrics")).text
    reply = await live.http.delete(f"/v1/adapters/{first}/pin")
    assert (reply.status_code, reply.json()["pinned"]) == (200, False)
    reply = await live.http.post(f"/v1/adapters/{second}/pin")
    assert (reply.status_code, reply.json()["pinned"]) == (200, True)
    await live.http.delete(f"/v1/adapters/{second}/pin")


@pytest.mark.parametrize(("damage", "factor"), [("gone", 2.0), ("changed", 3.0)])
async def test_files_that_the_store_lost_are_the_servers_fault_by_name(
    live: Live, damage: str, factor: float
):
    """A 404 would send clients looking for a mistake of theirs."""
    folder: Path = next(iter(live.reference._folders.values()))
    weights = load_file(folder / "adapter_model.safetensors")
    other = save({name: factor * tensor for name, tensor in weights.items()})
    config = (folder / "adapter_config.json").read_bytes()
    files = [
        ("files", ("adapter_config.json", config)),
        ("files", ("adapter_model.safetensors", other)),
    ]
    name = f"lost-{damage}"
    reply = await live.http.post("/v1/adapters", data={"name": name}, files=files)
    blob = live.app.state.services.store.blob_root / place_of(reply.json()["digest"])
    if damage == "gone":
        shutil.rmtree(blob)
    else:
        (blob / "adapter_model.safetensors").write_bytes(save(weights))
    asked = {"model": name, "prompt": PROMPT, "max_tokens": 2}
    for path, body in (
        ("/v1/completions", asked),
        ("/v1/completions", asked | {"stream": True}),
        (f"/v1/adapters/{name}/prefetch", {}),
        (f"/v1/adapters/{name}/pin", {}),
        (f"/v1/adapters/{name}/compare", {"prompt": PROMPT}),
    ):
        reply = await live.http.post(path, json=body)
        assert "store_corrupt" in reply.text, (path, reply.text)
        assert f"adapter {name}@1" in reply.text
    metrics = (await live.http.get("/metrics")).text.splitlines()
    (total,) = [m for m in metrics if m.startswith("adapterd_adapter_failed_loads_total ")]
    assert float(total.split()[1]) >= 5
    assert (await live.http.delete(f"/v1/adapters/{name}")).status_code == 200
