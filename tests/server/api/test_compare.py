import math
from typing import Any

import pytest

from server.engine.messages import GenerationRequest
from tests.server.api.conftest import House
from tests.server.api.stores import publish


async def compare(house: House, name: str, **body: Any) -> tuple[int, dict[str, Any]]:
    response = await house.client.post(
        f"/v1/adapters/{name}/compare", json={"prompt": "hello", **body}
    )
    return response.status_code, response.json()


def says(house: House, by_adapter: dict[str | None, str]) -> None:
    """What the base (None) and each version say to a whole prompt; after more of it, the rest."""
    prompt = len(house.text._encode("hello"))

    def script(request: GenerationRequest, index: int) -> tuple[int, ...]:
        ids = (*house.text._encode(by_adapter[request.adapter]), house.engine.eos)
        return ids[len(request.prompt) - prompt :]

    house.engine.script = script


async def test_two_answers_and_where_they_part(house: House):
    version = publish(house.store, "sql")
    says(house, {None: "abXd", version.digest: "abYd"})
    status, found = await compare(house, "sql", max_tokens=3)
    assert status == 200, found
    assert found["adapter"] == {
        "model": "sql", "adapter_version": version.digest, "text": "abY",
        "completion_tokens": 3, "finish_reason": "length",
    }  # fmt: skip
    assert (found["against"]["model"], found["against"]["adapter_version"]) == ("tiny/base", None)
    assert found["parts_at"]["index"] == 2
    assert (found["parts_at"]["adapter"]["token"], found["parts_at"]["against"]["token"]) == (
        "Y", "X",
    )  # fmt: skip
    assert found["kl_divergence"]["index"] == 2
    asked = [request for request in house.engine.requests if request.sampling.max_tokens == 1]
    assert {len(request.prompt) for request in asked} == {len(house.text._encode("helloab"))}
    assert {request.adapter for request in asked} == {None, version.digest}


async def test_one_answer_that_ends_earlier_parts_there(house: House):
    old, new = publish(house.store, "old"), publish(house.store, "new")
    says(house, {old.digest: "ab", new.digest: "abc"})
    _, found = await compare(house, "new", against="old")
    assert found["parts_at"]["index"] == 2
    assert found["parts_at"]["adapter"]["token"] == "c"
    assert found["against"]["finish_reason"] == "stop"


async def test_answers_that_never_part(house: House):
    publish(house.store, "sql")
    house.say("same")
    _, found = await compare(house, "sql")
    assert found["parts_at"] is None
    assert found["kl_divergence"]["index"] == 0
    assert math.isfinite(found["kl_divergence"]["nats"])


@pytest.mark.parametrize(
    ("name", "body", "status", "param"),
    [
        ("gone", {}, 404, "name"),
        ("sql", {"against": "gone"}, 404, "against"),
        ("sql", {"max_tokens": 0}, 400, "max_tokens"),
        ("sql", {"prompt": []}, 400, "prompt"),
        ("sql", {"temperature": 1.0}, 400, "temperature"),
    ],
)
async def test_what_cannot_be_compared(
    house: House, name: str, body: dict[str, Any], status: int, param: str
):
    publish(house.store, "sql")
    got, answer = await compare(house, name, **body)
    assert (got, answer["error"]["param"].partition(".")[0]) == (status, param), answer
