"""An adapter's life over HTTP, on a real store."""

import asyncio
import io
import json
import threading
import zipfile
from typing import Any

import httpx2
import pytest

from adapters_store.errors import AdapterdError, AdapterLoadFailed, Conflict, Unavailable
from server.api.services import ApiLimits
from server.engine.messages import Stats
from tests.server.api.conftest import BASE, House, make_house, until
from tests.server.api.stores import CONFIG, adapter_files, publish

Parts = list[tuple[str, tuple[str, bytes]]]


def parts(files: dict[str, bytes] | None = None) -> Parts:
    return [("files", item) for item in (files or adapter_files()).items()]


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


async def push(house: House, name: str = "sql", files: Parts | None = None) -> httpx2.Response:
    return await house.client.post(
        "/v1/adapters", data={"name": name}, files=parts() if files is None else files
    )


async def test_upload_and_use(house: House):
    reply = await push(house)
    body = reply.json()
    assert reply.status_code == 201, body
    digest = body["digest"]
    assert len(digest) == 64
    assert isinstance(body.pop("created_at"), int)
    assert body == {
        "id": "sql",
        "object": "adapter",
        "version": 1,
        "versions": 1,
        "digest": digest,
        "kind": "lora",
        "rank": 4,
        "target_modules": ["q_proj"],
        "bytes": 256,
        "base": BASE,
        "owner": "default",
        "residency": "disk",
        "load_seconds": {},
        "pinned": False,
        "report": {"matched": 1},
        "ignored_files": [],
    }
    used = await house.client.post("/v1/completions", json={"model": "sql", "prompt": "a"})
    assert used.json()["adapter_version"] == digest


async def test_the_same_content_again_is_200(house: House):
    first = await push(house)
    files = adapter_files()
    again = await push(house, files=[("file", ("sql.zip", zipped(files)))])
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["digest"] == first.json()["digest"]
    other = await push(house, files=parts(adapter_files(seed=1)))
    assert (other.status_code, other.json()["version"], other.json()["versions"]) == (201, 2, 2)


async def test_files_that_are_not_needed_are_named(house: House):
    reply = await push(house, files=parts(adapter_files() | {"README.md": b"# hello"}))
    assert reply.json()["ignored_files"] == ["README.md"]


async def test_show_list_versions(house: House):
    for name in ("c", "a", "b"):
        publish(house.store, name)
    digest = house.store.get("b").current.digest
    house.engine.stats = Stats(residency={digest: "slot"})
    page = (await house.client.get("/v1/adapters?limit=2")).json()
    assert [one["id"] for one in page["data"]] == ["a", "b"]
    assert [one["residency"] for one in page["data"]] == ["disk", "slot"]
    assert (page["object"], page["has_more"]) == ("list", True)
    page = (await house.client.get("/v1/adapters?limit=2&after=b")).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (["c"], False)
    assert (await house.client.get("/v1/adapters/b")).json()["digest"] == digest
    await push(house, "b", parts(adapter_files(seed=9)))
    versions = (await house.client.get("/v1/adapters/b/versions")).json()
    assert [one["version"] for one in versions["data"]] == [1, 2]
    assert (await house.client.get("/v1/adapters/b")).json()["version"] == 2
    for first in ("b@1", f"b@{digest[:12]}"):
        shown = (await house.client.get(f"/v1/adapters/{first}")).json()
        assert shown | {"id": "b", "version": 1, "versions": 2, "digest": digest} == shown


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "limit=true"])
async def test_a_bad_limit(house: House, query: str):
    reply = await house.client.get(f"/v1/adapters?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "limit")


async def test_download(house: House):
    await push(house)
    await push(house, files=parts(adapter_files(seed=1)))
    reply = await house.client.get("/v1/adapters/sql@1/download")
    assert reply.headers["content-type"] == "application/zip"
    assert reply.headers["content-length"] == str(len(reply.content))
    assert reply.headers["content-disposition"] == 'attachment; filename="sql-1.zip"'
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        names = {name.split("/")[-1]: archive.read(name) for name in archive.namelist()}
    config = json.loads(names["adapter_config.json"])
    assert {key: config[key] for key in CONFIG} == CONFIG
    again = await push(house, files=[("file", ("x.zip", reply.content))])
    assert (again.status_code, again.json()["version"]) == (200, 1)


async def test_delete(house: House):
    await push(house)
    reply = await house.client.delete("/v1/adapters/sql")
    assert reply.json() == {"id": "sql", "object": "adapter.deleted", "deleted": True}
    for method, path in [
        ("DELETE", "/v1/adapters/sql"),
        ("GET", "/v1/adapters/sql"),
        ("GET", "/v1/adapters/sql/versions"),
        ("GET", "/v1/adapters/sql/download"),
        ("GET", "/v1/adapters/..%2f..%2fetc"),
        ("GET", "/v1/adapters/%00"),
    ]:
        reply = await house.client.request(method, path)
        code = reply.json()["error"]["code"]
        assert (reply.status_code, code.endswith("not_found")) == (404, True), path


async def test_prefetch(house: House):
    digest = publish(house.store, "sql").digest
    reply = await house.client.post("/v1/adapters/sql/prefetch", json={"to": "host"})
    body = reply.json()
    assert reply.status_code == 200, body
    assert (body["id"], body["digest"], body["residency"]) == ("sql", digest, "host")
    reply = await house.client.post("/v1/adapters/sql/prefetch")  # no body, not even its type
    assert (reply.status_code, reply.json()["residency"]) == (200, "slot")
    await push(house, "sql", parts(adapter_files(seed=9)))
    await house.client.post("/v1/adapters/sql@1/prefetch", json={})
    wishes = [("prefetch", digest, "host"), ("prefetch", digest, "slot")]
    assert house.engine.wishes == [*wishes, wishes[1]]


async def test_pin_and_unpin(house: House):
    digest = publish(house.store, "sql").digest
    reply = await house.client.post("/v1/adapters/sql/pin", json={"ttl_seconds": 600})
    body = reply.json()
    assert (reply.status_code, body["pinned"], body["residency"]) == (200, True, "slot"), body
    shown = (await house.client.get("/v1/adapters/sql")).json()
    assert shown["pinned"] is True
    reply = await house.client.delete("/v1/adapters/sql/pin")
    assert (reply.status_code, reply.json()["pinned"]) == (200, False)
    await house.client.post("/v1/adapters/sql/pin")
    await house.client.post("/v1/adapters/sql/pin", json={"ttl_seconds": None})
    for_ever = ("pin", digest, None)
    assert house.engine.wishes == [
        ("pin", digest, 600), ("unpin", digest, None), for_ever, for_ever,
    ]  # fmt: skip


async def test_a_deleted_adapter_is_unpinned(house: House):
    digest = publish(house.store, "sql").digest
    await house.client.post("/v1/adapters/sql/pin")
    await push(house, "sql", parts(adapter_files(seed=9)))
    assert (await house.client.delete("/v1/adapters/sql")).status_code == 200
    assert house.engine.wishes[1:] == [("unpin", digest, None)]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("sql/prefetch", b'{"to": "disk"}', 400, "to"),
        ("sql/prefetch", b'{"level": "slot"}', 400, None),
        ("sql/pin", b'{"ttl_seconds": 0}', 400, "ttl_seconds"),
        ("sql/pin", b'{"ttl_seconds": true}', 400, "ttl_seconds"),
        ("sql/pin", b'{"ttl_seconds": "600"}', 400, "ttl_seconds"),
        ("sql/pin", b'{"ttl_seconds": 1e9}', 400, "ttl_seconds"),
        ("sql/pin", b'{"ttl_seconds": 100000000000}', 400, "ttl_seconds"),
        ("sql/pin", b"[]", 400, None),
        ("other/pin", b"{}", 404, None),
        ("other/prefetch", b"{}", 404, None),
        ("..%2fsql/pin", b"{}", 404, None),
    ],
)
async def test_a_wish_that_is_refused(
    house: House, path: str, body: bytes, status: int, param: str | None
):
    publish(house.store, "sql")
    headers = {"content-type": "application/json"}
    reply = await house.client.post(f"/v1/adapters/{path}", content=body, headers=headers)
    assert reply.status_code == status, reply.text
    if param is not None:
        assert reply.json()["error"]["param"] == param
    assert house.engine.wishes == []


async def test_a_body_of_another_type_is_refused_though_it_may_be_left_out(house: House):
    publish(house.store, "sql")
    for body in (b"ttl_seconds=600", iter_of(b"ttl_seconds=600")):
        headers = {"content-type": "application/x-www-form-urlencoded"}
        reply = await house.client.post("/v1/adapters/sql/pin", content=body, headers=headers)
        assert reply.status_code == 415, reply.text


async def iter_of(body: bytes):
    """A body whose length is not said beforehand."""
    yield body


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (AdapterLoadFailed("it could not be read"), 500, "adapter_load_failed"),
        (Unavailable("all 4 slots are in use"), 503, "unavailable"),
        (Conflict("there are 4 slots, 3 of them pinned"), 409, "conflict"),
    ],
)
@pytest.mark.parametrize("what", ["pin", "prefetch"])
async def test_what_the_engine_refuses(
    house: House, what: str, error: AdapterdError, status: int, code: str
):
    publish(house.store, "sql")
    house.engine.fail_before = error
    reply = await house.client.post(f"/v1/adapters/sql/{what}")
    said = reply.json()["error"]
    assert (reply.status_code, said["code"], said["message"]) == (status, code, error.message)
    assert ("retry-after" in reply.headers) == (status == 503)


async def test_prefetches_under_way_are_few(tmp_path):
    async with make_house(tmp_path, limits=ApiLimits(max_requests=2)) as house:
        publish(house.store, "sql")
        house.engine.hold.clear()
        url = "/v1/adapters/sql/prefetch"
        asked = [asyncio.create_task(house.client.post(url)) for _ in range(2)]
        await until(lambda: len(house.engine.wishes) == 2)
        assert (await house.client.post(url)).status_code == 429
        house.engine.hold.set()
        assert {(await one).status_code for one in asked} == {200}
        assert (await house.client.post(url)).status_code == 200


REFUSED: list[tuple[Any, Any, int, str, str | None]] = [
    ({"name": "No"}, parts(), 400, "invalid_request", "name"),
    ({"name": ""}, parts(), 400, "invalid_request", "name"),
    ({}, parts(), 400, "invalid_request", "name"),
    ({"name": ["a", "b"]}, parts(), 400, "invalid_request", "name"),
    ({"name": "a", "file": "x"}, parts(), 400, "invalid_request", "file"),
    ({"name": "a", "path": "/etc"}, parts(), 400, "invalid_request", "path"),
    ({"name": "a"}, [*parts(), ("other", ("x", b"x"))], 400, "invalid_request", "other"),
    ({}, [*parts(), ("name", ("x", b"x"))], 400, "invalid_request", "name"),
    ({"name": "a" * 5000}, parts(), 400, "invalid_request", None),
    ({"name": "a"}, [("files", (f"f{i}", b"")) for i in range(65)], 400, "invalid_request", None),
    ({"name": "a"}, [("file", ("a.zip", b"PK no zip"))], 400, "invalid_adapter", None),
    ({"name": "a"}, [("files", ("adapter_config.json", b"{}"))], 400, "invalid_adapter", None),
    (
        {"name": "a"},
        parts(adapter_files() | {"adapter_config.json": json.dumps(CONFIG | {"r": 99}).encode()}),
        400,
        "invalid_adapter",
        None,
    ),
]


@pytest.mark.parametrize(("data", "files", "status", "code", "param"), REFUSED)
async def test_a_refused_upload_stores_nothing(
    house: House, data: Any, files: Any, status: int, code: str, param: str | None
):
    reply = await house.client.post("/v1/adapters", data=data, files=files)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param), error
    assert house.store.list(limit=9) == ((), False)


async def test_no_file_at_all(house: House):
    body = b'--x\r\ncontent-disposition: form-data; name="name"\r\n\r\nsql\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    reply = await house.client.post("/v1/adapters", content=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "file")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n\r\nhi\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\ncontent-disposition: form-data", "multipart/form-data; boundary=x", 400),
    ],
)
async def test_no_multipart(house: House, body: bytes, content_type: str, status: int):
    headers = {"content-type": content_type}
    reply = await house.client.post("/v1/adapters", content=body, headers=headers)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("declared", [True, False])
async def test_an_upload_over_the_limit(tmp_path, declared: bool):
    files = parts({"adapter_model.safetensors": b"x" * 50_000})
    async with make_house(tmp_path, limits=ApiLimits(max_upload_bytes=20_000)) as house:
        request = house.client.build_request(
            "POST", "/v1/adapters", data={"name": "a"}, files=files
        )
        body, kind = request.read(), request.headers["content-type"]

        async def chunks():
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        reply = await house.client.post(
            "/v1/adapters",
            content=body if declared else chunks(),
            headers={"content-type": kind},
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
        assert "20000" in reply.json()["error"]["message"]


async def test_the_bases_name_is_reserved(tmp_path):
    async with make_house(tmp_path, base="base-model") as house:
        reply = await push(house, "base-model")
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "name_reserved")
        assert reply.json()["error"]["param"] == "name"


async def test_an_upload_waits_for_the_engine(house: House):
    house.engine.state = "starting"
    reply = await push(house)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_uploads_leave_threads_to_completions(house: House, monkeypatch: pytest.MonkeyPatch):
    held = threading.Event()
    publish_now, working = house.store.publish, []

    def slow(*arguments: Any, **named: Any) -> Any:
        working.append(1)
        held.wait(10)
        return publish_now(*arguments, **named)

    publish(house.store, "sql")
    monkeypatch.setattr(house.store, "publish", slow)
    uploads = [asyncio.create_task(push(house, f"a{number}")) for number in range(50)]
    await until(lambda: working)
    await asyncio.sleep(0.2)  # the others would take the threads now, if they could
    body = {"model": "sql", "prompt": "hi"}
    async with asyncio.timeout(5):
        assert (await house.client.post("/v1/completions", json=body)).status_code == 200
    held.set()
    assert {reply.status_code for reply in await asyncio.gather(*uploads)} == {201}
