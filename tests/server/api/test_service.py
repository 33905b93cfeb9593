"""Admission, draining, health, and clients that go away."""

import asyncio
import socket
from urllib.parse import urlsplit

import httpx2
import pytest

from adapters_store.errors import Draining, Overloaded
from server.api.services import Admission, ApiLimits
from tests.server.api.conftest import BASE, House, make_house, served, until

BODY = {"model": BASE, "prompt": "hi", "max_tokens": 100}


def test_places_are_given_back():
    admission = Admission(2)
    with admission.place(), admission.place():
        with pytest.raises(Overloaded), admission.place():
            pass
        assert admission.active == 2
    with pytest.raises(ZeroDivisionError), admission.place():
        raise ZeroDivisionError
    assert admission.active == 0


def test_draining_only_shuts_the_door():
    admission = Admission(2)
    with admission.place():
        admission.drain()
        with pytest.raises(Draining), admission.place():
            pass
        assert admission.active == 1
    assert admission.active == 0


async def test_too_many_at_once(tmp_path):
    async with make_house(tmp_path, limits=ApiLimits(max_requests=1)) as house:
        house.engine.hold.clear()
        first = asyncio.create_task(house.client.post("/v1/completions", json=BODY))
        await until(lambda: house.engine.requests)
        second = await house.client.post("/v1/completions", json=BODY)
        assert (second.status_code, second.json()["error"]["code"]) == (429, "overloaded")
        assert int(second.headers["retry-after"]) >= 1
        house.engine.hold.set()
        assert (await first).status_code == 200
        assert (await house.client.post("/v1/completions", json=BODY)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_draining(house: House, stream: bool):
    house.engine.hold.clear()
    body = BODY | {"stream": stream}
    first = asyncio.create_task(house.client.post("/v1/completions", json=body))
    await until(lambda: house.engine.requests)
    house.app.state.services.drain()
    for method, path in [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/adapters"),
        ("DELETE", "/v1/adapters/x"),
        ("GET", "/health/ready"),
    ]:
        reply = await house.client.request(method, path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining"), path
        assert reply.headers["retry-after"]
    assert (await house.client.get("/health/live")).status_code == 200
    assert (await house.client.get("/metrics")).status_code == 200
    house.engine.hold.set()
    reply = await first
    assert reply.status_code == 200
    assert not stream or reply.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("state", ["starting", "restarting", "failed", "stopped"])
async def test_an_engine_that_is_not_ready(house: House, state):
    house.engine.state = state
    assert (await house.client.get("/health/live")).json() == {"status": "ok"}
    for path in ("/health/ready", "/health"):
        reply = await house.client.get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
        assert state in reply.json()["error"]["message"]
    reply = await house.client.post("/v1/completions", json=BODY)
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    assert (await house.client.get("/v1/models")).status_code == 200
    house.engine.state = "ready"
    assert (await house.client.get("/health")).json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_gives_up_waiting(house: House, stream: bool):
    house.engine.hold.clear()
    body = BODY | {"stream": stream, "n": 2}
    timeout = httpx2.Timeout(5, read=0.3)
    async with served(house.app) as url:
        async with httpx2.AsyncClient(timeout=timeout) as client:
            with pytest.raises(httpx2.ReadTimeout):
                await client.post(f"{url}/v1/completions", json=body)
        await until(lambda: house.engine.closed)
        assert house.app.state.services.admission.active == 0
        text = house.app.state.services.metrics.render().decode()
        assert 'request_success_total{finished_reason="abort",model_name="tiny/base"} 2.0' in text


async def test_a_client_that_leaves_a_stream(house: House):
    house.say("hello world " * 8)
    async with served(house.app) as url, httpx2.AsyncClient() as client:
        house.engine.hold.clear()
        body = BODY | {"stream": True}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                assert "hell" in line
                break
        await until(lambda: house.engine.closed)
        assert house.app.state.services.admission.active == 0


async def test_a_client_that_hangs_up_while_sending(house: House):
    async with served(house.app) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port)) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b'content-length: 1000\r\n\r\n{"model":'
            )
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{url}/health/live")).status_code == 200
    assert not house.engine.requests


async def test_a_refused_body_is_still_answered(house: House):
    """Over a real connection: a server that hung up at once would show as a broken pipe."""
    async with served(house.app) as url, httpx2.AsyncClient() as client:
        body = b'{"model": "' + b"x" * (6 << 20) + b'"}'
        headers = {"content-type": "application/json"}
        reply = await client.post(f"{url}/v1/completions", content=body, headers=headers)
        assert reply.status_code == 413


async def test_the_openapi_document(house: House):
    document = (await house.client.get("/openapi.json")).json()
    assert {"/v1/completions", "/v1/adapters/{name}", "/health/live"} <= set(document["paths"])
