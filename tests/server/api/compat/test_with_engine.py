"""Every dialect over a real engine: each peer's own calls answer what peft says alone."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient
from prometheus_client import CollectorRegistry

from adapters_store.sources import Sources
from adapters_store.store import AdapterStore
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits
from server.api.app import create_app
from server.api.text import TextCodec
from server.engine.client import EngineClient
from server.engine.messages import EngineConfig
from server.metrics import Metrics
from tests.e2e.tiny_base import make_tiny_adapters, make_tiny_base
from tests.server.api.conftest import served
from tests.server.api.sse import events
from tests.support.reference import Reference

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASE = "tiny"
PROMPT = "One frozen base"
TOKENS = 12


@dataclass(frozen=True)
class Live:
    http: httpx2.AsyncClient
    url: str
    folders: dict[str, Path]
    expected: dict[str | None, str]  # by adapter; None: the base

    async def post(self, path: str, **body: Any) -> Any:
        reply = await self.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def loaded(self) -> str:
        """The name of an adapter that is served, by vLLM's call."""
        name, folder = next(iter(self.folders.items()))
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        reply = await self.http.post("/v1/load_lora_adapter", json=body)
        assert reply.text == f"Success: LoRA adapter '{name}' added successfully."
        return name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    root = tmp_path_factory.mktemp("adapters")
    folders = make_tiny_adapters(base, root, count=2)
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
    engine, text = EngineClient(config), TextCodec.load(str(base))
    app = create_app(
        engine=engine,
        store=store,
        text=text,
        base_name=BASE,
        check=partial(methods.check, limits=SlotLimits(slots=2, rows=128, row_bytes=1)),
        metrics=Metrics(
            CollectorRegistry(), model_name=BASE, engine=engine, max_resident_adapters=2
        ),
        sources=Sources([root]),
    )
    await engine.start()
    async with served(app) as url, httpx2.AsyncClient(base_url=url, timeout=60) as http:
        yield Live(http, url, folders, _expected(Reference(base, folders), text))
    await engine.stop()
    store.close()


def _expected(reference: Reference, text: TextCodec) -> dict[str | None, str]:
    expected = {}
    for name in (None, *reference._folders):
        answer = reference.answer(name, text._encode(PROMPT), TOKENS)
        assert min(answer.margins) > 1e-3, "too close to call: choose another prompt"
        expected[name] = text.decode(answer.tokens)
    assert len(set(expected.values())) == len(expected), "nothing would tell adapters apart"
    return expected


async def test_vllm_loads_completes_and_unloads(live: Live):
    name = await live.loaded()
    body = {"model": name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    reply = await live.post("/v1/completions", **body)
    assert reply["choices"][0]["text"] == live.expected[name]
    reply = await live.http.post("/v1/unload_lora_adapter", json={"lora_name": name})
    assert reply.text == f"Success: LoRA adapter '{name}' removed successfully."
    assert (await live.http.post("/v1/completions", json=body)).status_code == 404


async def test_sglang_loads_and_generates(live: Live):
    name, folder = list(live.folders.items())[1]
    body = {"lora_name": name, "lora_path": str(folder), "upsert": True}
    reply = await live.post("/load_lora_adapter", **body)
    assert reply["loaded_adapters"][name] == str(folder)
    sampling = {"max_new_tokens": TOKENS, "temperature": 0}
    asked = {"text": PROMPT, "sampling_params": sampling, "lora_path": name}
    assert (await live.post("/generate", **asked))["text"] == live.expected[name]
    reply = await live.http.post("/generate", json=asked | {"stream": True})
    *_, last, done = events(reply.text)
    assert (last["text"], done) == (live.expected[name], "[DONE]")
    body = {"model": f"{BASE}:{name}", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    reply = await live.post("/v1/completions", **body)
    assert reply["choices"][0]["text"] == live.expected[name]


async def test_lorax_by_hugging_faces_client(live: Live):
    name = await live.loaded()
    async with AsyncInferenceClient(model=live.url) as client:
        for adapter in (name, None):
            asked: dict[str, Any] = {"adapter_id": adapter, "max_new_tokens": TOKENS}
            assert await client.text_generation(PROMPT, **asked) == live.expected[adapter]
            stream = await client.text_generation(PROMPT, stream=True, details=True, **asked)
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].generated_text == live.expected[adapter]
            texts = [chunk.token.text for chunk in chunks if not chunk.token.special]
            assert "".join(texts) == live.expected[adapter]
            assert all(chunk.token.logprob <= 0 for chunk in chunks)


async def test_llamacpp_by_number(live: Live):
    name = await live.loaded()
    listed = (await live.http.get("/lora-adapters")).json()
    number = next(one["id"] for one in listed if one["path"] == name)
    for scale, adapter in ((1.0, name), (0.0, None)):
        lora = [{"id": number, "scale": scale}]
        asked = {"prompt": PROMPT, "n_predict": TOKENS, "temperature": 0, "lora": lora}
        assert (await live.post("/completion", **asked))["content"] == live.expected[adapter]
        reply = await live.http.post("/completion", json=asked | {"stream": True})
        assert "".join(one["content"] for one in events(reply.text)) == live.expected[adapter]
