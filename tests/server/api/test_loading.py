"""POST /v1/adapters with a JSON body: an adapter from the server's own disk or a hub's cache."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters_store.sources import Sources
from tests.adapters_store.hub_cache import COMMIT, make_hub_cache
from tests.server.api.conftest import BASE, House, make_house
from tests.server.api.stores import adapter_files, write_adapter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "root" / "sql")
    write_adapter(tmp_path / "root" / "dates", seed=1)
    write_adapter(tmp_path / "outside")
    return tmp_path / "root"


@pytest.fixture
async def house(tmp_path: Path, root: Path) -> AsyncIterator[House]:
    async with make_house(tmp_path / "data", sources=Sources([root], hub=True)) as made:
        yield made


async def load(house: House, **body: Any) -> tuple[int, dict[str, Any]]:
    reply = await house.client.post("/v1/adapters", json=body)
    return reply.status_code, reply.json()


async def test_a_folder_is_served_at_once_and_the_report_says_where_it_was(
    house: House, root: Path
):
    status, body = await load(house, name="sql", source=f"{root}/sql")
    assert (status, body["id"], body["version"], body["ignored_files"]) == (201, "sql", 1, [])
    assert body["report"] == {"matched": 1, "source": {"path": f"{root}/sql"}}
    assert (await house.client.get("/v1/adapters/sql")).json()["report"] == body["report"]
    used = await house.client.post("/v1/completions", json={"model": "sql", "prompt": "a"})
    assert used.json()["adapter_version"] == body["digest"]


async def test_what_is_published_is_a_copy(house: House, root: Path):
    await load(house, name="sql", source=f"{root}/sql")
    (root / "sql" / "adapter_model.safetensors").write_bytes(b"gone")
    house.store.check()


async def test_the_same_again_and_other_content(house: House, root: Path):
    assert (await load(house, name="sql", source=f"{root}/sql"))[0] == 201
    status, body = await load(house, name="sql", source=f"{root}/sql")
    assert (status, body["version"]) == (200, 1)
    status, body = await load(house, name="sql", source=f"{root}/dates")
    assert (status, body["version"], body["versions"]) == (201, 2, 2)


async def test_a_hubs_commit_is_in_the_report(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_hub_cache(tmp_path / "hub", "org/sql", adapter_files(), monkeypatch)
    status, body = await load(house, name="sql", source="org/sql", revision="main")
    assert (status, body["report"]["source"]) == (201, {"hub": "org/sql", "revision": COMMIT})
    status, body = await load(house, name="other", source="org/nobody")
    assert (status, body["error"]["code"]) == (503, "unavailable")


async def test_refusals(house: House, root: Path, tmp_path: Path):
    inside, outside = f"{root}/sql", f"{tmp_path}/outside"
    refused: list[tuple[dict[str, Any], int, str, str]] = [
        ({"source": inside}, 400, "invalid_request", "name"),
        ({"name": "sql"}, 400, "invalid_request", "source"),
        ({"name": "SQL", "source": inside}, 400, "invalid_request", "name"),
        ({"name": BASE, "source": inside}, 409, "name_reserved", "name"),
        ({"name": "sql", "source": outside}, 400, "invalid_request", "source"),
        ({"name": "sql", "source": f"{outside}-missing"}, 400, "invalid_request", "source"),
        ({"name": "sql", "source": f"{root}/nobody"}, 404, "adapter_not_found", "source"),
        ({"name": "sql", "source": inside, "revision": "v1"}, 400, "invalid_request", "revision"),
        ({"name": "sql", "source": inside, "path": "x"}, 400, "invalid_request", "path"),
    ]
    for body, status, code, param in refused:
        got, reply = await load(house, **body)
        assert (got, reply["error"]["code"], reply["error"]["param"]) == (status, code, param), body
    assert house.store.list(limit=9) == ((), False)


async def test_a_bad_name_is_refused_before_a_hub_is_asked(house: House):
    status, reply = await load(house, name="SQL", source="org/name")
    assert (status, reply["error"]["param"]) == (400, "name")


async def test_nothing_is_read_by_default(tmp_path: Path, root: Path):
    async with make_house(tmp_path / "data") as house:
        for source, remedy in ((f"{root}/sql", "--adapter-root"), ("org/sql", "--adapter-hub")):
            status, reply = await load(house, name="sql", source=source)
            assert (status, reply["error"]["param"]) == (400, "source")
            assert remedy in reply["error"]["message"]
