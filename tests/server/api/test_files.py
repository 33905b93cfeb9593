"""/v1/files: with the `openai` client, and what it refuses."""

import json
from collections.abc import AsyncIterator

import openai
import pytest

from tests.server.api.conftest import House, served
from tests.server.api.test_openai_client import open_client

LINE = {"prompt": "hello ", "completion": "world"}


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with served(house.app) as url, open_client(url) as made:
        yield made


def jsonl(*lines: object) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def test_a_files_life_with_the_openai_client(client: openai.AsyncOpenAI):
    content = jsonl(LINE, LINE)
    made = await client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert (made.object, made.bytes, made.filename) == ("file", len(content), "train.jsonl")
    assert (made.purpose, made.status) == ("fine-tune", "processed")
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == content
    assert await client.files.wait_for_processing(made.id) == made
    deleted = await client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError) as gone:
        await client.files.retrieve(made.id)
    assert (gone.value.code, gone.value.param) == ("file_not_found", "file_id")


async def test_the_client_pages_through_all(client: openai.AsyncOpenAI):
    made = [
        (await client.files.create(file=(f"{n}.jsonl", jsonl(LINE)), purpose="fine-tune")).id
        for n in range(5)
    ]
    for order in ("asc", "desc"):
        seen = [file.id async for file in client.files.list(limit=2, order=order)]
        assert sorted(seen) == sorted(made)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: the file is empty"),
        (jsonl(LINE) + b"\xff\n", "line 2: "),
        (jsonl(LINE, {"prompt": "x"}), "line 2: the line is none of the forms taken"),
        (jsonl(LINE, LINE | {"completion": ""}), "line 2: completion: "),
        (jsonl(LINE, {"messages": []}), "line 2: messages: "),
    ],
)
async def test_lines_at_fault_are_numbered_and_nothing_is_kept(
    client: openai.AsyncOpenAI, content: bytes, said: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert (refused.value.code, refused.value.param) == ("invalid_dataset", "file")
    assert said in refused.value.message
    assert (await client.files.list()).data == []


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "fine-tune", "expires_after[seconds]": "3600"}, "expires_after[seconds]"),
        ({"purpose": "fine-tune", "name": "x"}, "name"),
        ({"purpose": "fine-tune", "file": "text"}, "file"),
    ],
)
async def test_fields_at_fault_are_named(house: House, form: dict[str, str], param: str):
    files = [("file", ("train.jsonl", jsonl(LINE)))]
    reply = await house.client.post("/v1/files", data=form, files=files)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert house.store.files.list(limit=1, order="asc") == ((), False)


async def test_a_file_is_required(house: House):
    files = [("file", ("a.jsonl", jsonl(LINE))), ("file", ("b.jsonl", jsonl(LINE)))]
    reply = await house.client.post("/v1/files", data={"purpose": "fine-tune"}, files=files)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "file")
