"""POST /v1/fine_tuning/advise: what an `openai` client sees of a job that trains nothing."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.server.api.conftest import BASE, House, served
from tests.server.api.test_fine_tuning import CHAT, PREFERENCE, claimed, end_well, keep
from tests.server.api.test_openai_client import open_client
from training.advisor.request import AdviceRequest

PATH = "/v1/fine_tuning/advise"


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with served(house.app) as url, open_client(url) as made:
        yield made


async def test_an_advices_life_with_the_openai_client(house: House, client: openai.AsyncOpenAI):
    file = keep(house.store, CHAT)
    body = {
        "model": BASE,
        "training_file": file,
        "seed": 5,
        "metadata": {"team": "a"},
        "adapterd": {"probe_steps": 8, "full": False},
    }
    made = await client.post("/fine_tuning/advise", body=body, cast_to=FineTuningJob)
    assert (made.object, made.status, made.model, made.seed) == (
        "fine_tuning.job",
        "queued",
        BASE,
        5,
    )
    assert (made.training_file, made.fine_tuned_model, made.method) == (file, None, None)
    options = (made.model_extra or {})["adapterd"]
    assert (options["kind"], options["probe_steps"], options["full"]) == ("advise", 8, False)
    assert await client.fine_tuning.jobs.retrieve(made.id) == made
    listed = await client.fine_tuning.jobs.list(metadata={"team": "a"})
    assert [job.id for job in listed.data] == [made.id]

    lease = claimed(house)
    request = AdviceRequest.model_validate(lease.job.spec)
    assert request.model_dump(mode="json", exclude_none=True) == lease.job.spec
    assert request.adapterd.probe_steps == 8
    waiting = await house.client.get(f"/v1/fine_tuning/jobs/{made.id}/report")
    assert waiting.status_code == 409
    end_well(house, lease, result_files=["file-1"], report={"kind": "advice", "verdict": "peft"})
    done = await client.fine_tuning.jobs.retrieve(made.id)
    assert (done.status, done.result_files) == ("succeeded", ["file-1"])
    report = await house.client.get(f"/v1/fine_tuning/jobs/{made.id}/report")
    assert report.json() == {"kind": "advice", "verdict": "peft"}


FAULTS: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nobody"}, 404, "model"),
    ({"training_file": "file-0"}, 400, "training_file"),
    ({"adapterd": {"probe_steps": 3}}, 400, "adapterd.probe_steps"),
    ({"adapterd": {"probe_steps": "8"}}, 400, "adapterd.probe_steps"),
    ({"adapterd": {"peft": {}}}, 400, "adapterd.peft"),
    ({"kind": "train"}, 400, "kind"),
    ({"method": {"type": "supervised"}}, 400, "method"),
]


@pytest.mark.parametrize(("more", "status", "param"), FAULTS)
async def test_a_fault_names_its_field(house: House, more: dict[str, Any], status: int, param: str):
    body = {"model": BASE, "training_file": keep(house.store, CHAT)} | more
    reply = await house.client.post(PATH, json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == param


async def test_preferences_are_refused(house: House):
    file = keep(house.store, PREFERENCE)
    reply = await house.client.post(PATH, json={"model": BASE, "training_file": file})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "training_file"


async def test_an_advice_is_cancelled_like_a_job(house: House):
    body = {"model": BASE, "training_file": keep(house.store, CHAT)}
    made = (await house.client.post(PATH, json=body)).json()
    gone = await house.client.post(f"/v1/fine_tuning/jobs/{made['id']}/cancel")
    assert gone.json()["status"] == "cancelled"
