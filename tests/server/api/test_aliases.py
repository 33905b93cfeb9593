from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api.conftest import House
from tests.server.api.stores import adapter_files


async def upload(house: House, seed: int, *, name: str = "sql", **fields: str) -> dict[str, Any]:
    files = [("files", (file, data)) for file, data in adapter_files(seed).items()]
    response = await house.client.post("/v1/adapters", data={"name": name, **fields}, files=files)
    assert response.status_code == 201, response.text
    return response.json()


async def put(house: House, alias: str, **body: Any) -> tuple[int, dict[str, Any]]:
    name, _, tag = alias.partition(":")
    response = await house.client.put(f"/v1/adapters/{name}/aliases/{tag}", json=body)
    return response.status_code, response.json()


async def answers(house: House, model: str, **fields: Any) -> str:
    """The digest of the version that answered."""
    headers = fields.pop("headers", {})
    body = {"model": model, "prompt": "hello", **fields}
    response = await house.client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["adapter_version"]


def asked(house: House) -> list[str | None]:
    return [request.adapter for request in house.engine.requests]


async def test_an_alias_is_made_moved_and_answers(house: House):
    first, second = await upload(house, 1), await upload(house, 2)
    status, alias = await put(house, "sql:prod", version=1)
    assert status == 200
    assert alias == {
        "id": "sql:prod", "object": "alias", "adapter": "sql", "tag": "prod", "version": 1,
        "digest": first["digest"], "canary": None,
    }  # fmt: skip
    assert first["digest"].startswith(await answers(house, "sql:prod"))
    assert second["digest"].startswith(await answers(house, "sql"))
    status, _ = await put(house, "sql:prod", version=second["digest"][:12], expected_version=1)
    assert status == 200
    assert second["digest"].startswith(await answers(house, "sql:prod"))
    listed = (await house.client.get("/v1/adapters/sql/aliases")).json()["data"]
    assert [(one["tag"], one["version"]) for one in listed] == [("current", 2), ("prod", 2)]
    shown = (await house.client.get("/v1/adapters/sql:prod")).json()
    assert (shown["version"], shown["aliases"]) == (2, listed)
    card = (await house.client.get("/v1/models/sql:prod")).json()
    assert (card["id"], card["root"]) == ("sql:prod", f"sql@{second['digest'][:12]}")


async def test_a_move_that_comes_too_late_is_409_and_says_what_is_there(house: House):
    await upload(house, 1)
    await upload(house, 2)
    status, answer = await put(house, "sql:current", version=1, expected_version=1)
    assert (status, answer["error"]["code"]) == (409, "alias_moved")
    assert answer["error"]["param"] == "expected_version"
    assert "sql means version 2 now, not 1" in answer["error"]["message"]


async def test_a_canary_answers_its_share_and_sticks_to_whom_it_is_for(house: House):
    old, new = (await upload(house, 1))["digest"], (await upload(house, 2))["digest"]
    status, alias = await put(house, "sql:current", version=1, canary={"version": 2, "weight": 0.5})
    assert status == 200
    assert alias["canary"] == {"version": 2, "digest": new, "weight": 0.5}
    got = {}
    for number in range(24):
        user = f"user-{number}"
        got[user] = await answers(house, "sql", user=user)
        assert await answers(house, "sql", user=user, adapter_id="sql") == got[user]
        header = {"x-adapterd-sticky-key": user}
        assert await answers(house, "sql", user="another", headers=header) == got[user]
    assert {old, new} == {d for d in (old, new) for v in got.values() if d.startswith(v)}


async def test_one_request_is_answered_by_one_version(house: House):
    await upload(house, 1)
    await upload(house, 2)
    await put(house, "sql:current", version=1, canary={"version": 2, "weight": 0.5})
    for _ in range(20):
        house.engine.requests.clear()
        await answers(house, "sql", prompt=["a", "b", "c", "d"])
        assert len(set(asked(house))) == 1


async def test_the_log_names_the_version_that_answered(
    house: House, caplog: pytest.LogCaptureFixture
):
    digest = (await upload(house, 1))["digest"]
    caplog.set_level("DEBUG", "server.api.generation")
    await answers(house, "sql")
    await house.client.post("/v1/completions", json={"model": "tiny/base", "prompt": "hello"})
    first, second = [record.getMessage() for record in caplog.records]
    assert f": done by sql@{digest[:12]}, " in first
    assert ": done by the base, " in second


async def test_history_and_rollback(house: House):
    await upload(house, 1)
    await upload(house, 2)
    response = await house.client.post("/v1/adapters/sql/aliases/current/rollback")
    assert (response.status_code, response.json()["version"]) == (200, 1)
    moves = (await house.client.get("/v1/adapters/sql/aliases/current/history?limit=2")).json()
    assert [(one["cause"], one["version"]) for one in moves["data"]] == [
        ("rollback", 1),
        ("upload", 2),
    ]
    assert moves["has_more"] is True
    again = await house.client.post("/v1/adapters/sql/aliases/current/rollback")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    late = await house.client.post(
        "/v1/adapters/sql/aliases/current/rollback", params={"expected_version": 2}
    )
    assert (late.status_code, late.json()["error"]["code"]) == (409, "alias_moved")


async def test_an_upload_may_leave_the_name_where_it_is(house: House):
    first = await upload(house, 1)
    second = await upload(house, 2, promote="false")
    assert second["version"] == 2
    assert first["digest"].startswith(await answers(house, "sql"))
    files = [("files", (file, data)) for file, data in adapter_files(3).items()]
    bad = await house.client.post(
        "/v1/adapters", data={"name": "sql", "promote": "no"}, files=files
    )
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "promote")


async def test_single_versions_are_shown_and_deleted(house: House):
    first, second = await upload(house, 1), await upload(house, 2)
    shown = (await house.client.get("/v1/adapters/sql/versions/1")).json()
    assert (shown["version"], shown["digest"]) == (1, first["digest"])
    used = await house.client.delete("/v1/adapters/sql/versions/2")
    assert (used.status_code, used.json()["error"]["code"]) == (409, "version_in_use")
    gone = await house.client.delete(f"/v1/adapters/sql/versions/{first['digest'][:8]}")
    assert gone.json() == {
        "id": "sql@1", "object": "adapter.version.deleted", "digest": first["digest"],
        "deleted": True,
    }  # fmt: skip
    assert (await house.client.get("/v1/adapters/sql/versions/1")).status_code == 404
    await upload(house, 3)
    forced = await house.client.delete("/v1/adapters/sql/versions/3?force=true")
    assert forced.status_code == 200
    assert second["digest"].startswith(await answers(house, "sql"))


async def test_a_tag_is_removed_and_a_name_with_tags_is_kept(house: House):
    await upload(house, 1)
    await put(house, "sql:prod", version=1)
    kept = await house.client.delete("/v1/adapters/sql")
    assert (kept.status_code, kept.json()["error"]["param"]) == (409, "force")
    removed = await house.client.delete("/v1/adapters/sql/aliases/prod?expected_version=1")
    assert removed.json() == {"id": "sql:prod", "object": "alias.deleted", "deleted": True}
    gone = await house.client.get("/v1/adapters/sql/aliases/prod")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "alias_not_found")
    asked = await house.client.post("/v1/completions", json={"model": "sql:prod", "prompt": "x"})
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
    assert (await house.client.delete("/v1/adapters/sql")).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "version"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"version": "xyzxyzxyz"}, "version"),
        ({"version": 1, "canary": {"version": 2}}, "canary.weight"),
        ({"version": 1, "canary": {"version": 2, "weight": 1.0}}, "canary.weight"),
        ({"version": 1, "canary": {"version": 2, "weight": "0.5"}}, "canary.weight"),
        ({"version": 1, "expected_version": -1}, "expected_version"),
        ({"version": 1, "wight": 1}, "wight"),
    ],
)
async def test_a_bad_body_names_the_field(house: House, body: dict[str, Any], param: str):
    await upload(house, 1)
    await upload(house, 2)
    status, answer = await put(house, "sql:prod", **body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert (await house.client.get("/v1/adapters/sql/aliases/prod")).status_code == 404


async def test_the_store_is_collected_and_verified(house: House, adapter: Callable[[str], str]):
    adapter("a")
    assert (await house.client.post("/v1/store/gc")).json() == {"object": "store.gc", "removed": []}
    damaged = adapter("b")
    file = house.store.blob_root / "sha256" / damaged[:2] / damaged / "adapter_config.json"
    file.write_bytes(b"{}")
    found = (await house.client.post("/v1/store/verify")).json()
    assert found["checked"] == 2
    assert [(one["digest"], one["code"]) for one in found["faults"]] == [(damaged, "store_corrupt")]
