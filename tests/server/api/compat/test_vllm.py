"""vLLM's documented calls, and what it answers where they fail."""

from pathlib import Path
from typing import Any

import pytest

from tests.server.api.conftest import BASE, House


async def load(house: House, name: str, path: str, **more: Any) -> tuple[int, Any]:
    body = {"lora_name": name, "lora_path": path, **more}
    reply = await house.client.post("/v1/load_lora_adapter", json=body)
    return reply.status_code, reply.json()["error"] if reply.is_error else reply.text


async def unload(house: House, name: str) -> tuple[int, Any]:
    reply = await house.client.post("/v1/unload_lora_adapter", json={"lora_name": name})
    return reply.status_code, reply.json()["error"] if reply.is_error else reply.text


async def test_load_use_unload(house: House, root: Path):
    success = (200, "Success: LoRA adapter 'sql_adapter' added successfully.")
    assert await load(house, "sql_adapter", f"{root}/sql") == success
    body = {"model": "sql_adapter", "prompt": "San Francisco is a", "max_tokens": 7}
    reply = await house.client.post("/v1/completions", json=body)
    assert reply.json()["adapter_version"] == house.store.get("sql_adapter").current.digest
    models = (await house.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == [BASE, "sql_adapter"]
    success = (200, "Success: LoRA adapter 'sql_adapter' removed successfully.")
    assert await unload(house, "sql_adapter") == success
    assert (await house.client.post("/v1/completions", json=body)).status_code == 404


async def test_the_reply_is_plain_text(house: House, root: Path):
    body = {"lora_name": "sql", "lora_path": f"{root}/sql"}
    reply = await house.client.post("/v1/load_lora_adapter", json=body)
    assert reply.headers["content-type"].startswith("text/plain")


async def test_a_name_that_is_loaded(house: House, root: Path):
    await load(house, "sql", f"{root}/sql")
    for path in (f"{root}/sql", f"{root}/dates"):
        status, error = await load(house, "sql", path)
        assert (status, error["type"], error["param"]) == (400, "InvalidUserInput", "lora_name")
        assert error["message"] == (
            "The lora adapter 'sql' has already been loaded. If you want to load the adapter in "
            "place, set 'load_inplace' to True."
        )
    assert house.store.get("sql").versions == 1


async def test_loading_in_place_changes_what_the_name_means(house: House, root: Path):
    assert (await load(house, "sql", f"{root}/sql", load_inplace=True))[0] == 200
    assert (await load(house, "sql", f"{root}/dates", load_inplace=True))[0] == 200
    assert (await load(house, "sql", f"{root}/dates", load_inplace=True))[0] == 200
    assert house.store.get("sql").current.number == 2


async def test_content_that_the_name_had_before_is_what_it_means_again(house: House, root: Path):
    await load(house, "sql", f"{root}/sql")
    await load(house, "sql", f"{root}/dates", load_inplace=True)
    assert (await load(house, "sql", f"{root}/sql", load_inplace=True))[0] == 200
    record = house.store.get("sql")
    assert (record.current.number, record.versions) == (1, 2)


async def test_unloading_what_is_not_there(house: House):
    status, error = await unload(house, "nobody")
    assert (status, error["code"], error["param"]) == (404, "adapter_not_found", "lora_name")
    assert error["message"] == "The lora adapter 'nobody' cannot be found."


@pytest.mark.parametrize("name", ["SQL-LoRA", "org/sql", "with space", "-x", "a" * 64])
async def test_names_that_are_none_here(house: House, root: Path, name: str):
    status, error = await load(house, name, f"{root}/sql")
    assert (status, error["param"]) == (400, "lora_name")
    assert "a-z" in error["message"]


async def test_the_bases_name(house: House, root: Path):
    status, error = await load(house, BASE, f"{root}/sql")
    assert (status, error["param"]) == (400, "lora_name")
    said = f"The lora adapter '{BASE}' conflicts with a served base model."
    assert error["message"] == said


async def test_a_path_outside_the_roots(house: House, root: Path):
    there, missing = f"{root.parent}/data", f"{root.parent}/nothing"
    first, second = await load(house, "sql", there), await load(house, "sql", missing)
    assert first == second
    assert (first[0], first[1]["param"]) == (400, "lora_path")


async def test_a_path_where_no_adapter_is(house: House, root: Path):
    status, error = await load(house, "sql", f"{root}/nobody")
    assert (status, error["param"]) == (404, "lora_path")
    said = f"Loading lora sql failed: No adapter found for {root}/nobody"
    assert error["message"].startswith(said)


async def test_fields(house: House, root: Path):
    path = f"{root}/sql"
    assert (await load(house, "sql", path, base_model_name=BASE, is_3d_lora_weight=False))[0] == 200
    for more, code, param in [
        ({"base_model_name": "llama"}, "invalid_request", "base_model_name"),
        ({"is_3d_lora_weight": True}, "unsupported_parameter", "is_3d_lora_weight"),
        ({"load_inplace": "yes"}, "invalid_request", "load_inplace"),
        ({"int_id": 1}, "invalid_request", "int_id"),
    ]:
        status, error = await load(house, "other", path, **more)
        assert (status, error["code"], error["param"]) == (400, code, param)
    for body in ({"lora_name": "x"}, {"lora_path": "/x"}, {"lora_name": "", "lora_path": "/x"}):
        reply = await house.client.post("/v1/load_lora_adapter", json=body)
        assert reply.status_code == 400
    body = {"lora_name": "sql", "lora_int_id": 3}
    assert (await house.client.post("/v1/unload_lora_adapter", json=body)).status_code == 200
