"""/v1/fine_tuning/jobs: with the `openai` client, a worker's part played by its own queue."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters_store.store import AdapterStore
from server.api.fine_tuning_request import _made_name
from tests.server.api.conftest import BASE, House, make_house, served
from tests.server.api.stores import publish
from tests.server.api.test_openai_client import open_client
from training.checkpoints import CheckpointShelf
from training.jobs import JobBook, JobQueue, Lease, succeed
from training.spec import JobRequest

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
TEXT = {"prompt": "hello ", "completion": "world"}
PREFERENCE = {
    "input": {"messages": [{"role": "user", "content": "hi"}]},
    "preferred_output": [{"role": "assistant", "content": "hello"}],
    "non_preferred_output": [{"role": "assistant", "content": "go away"}],
}


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with served(house.app) as url, open_client(url) as made:
        yield made


def keep(store: AdapterStore, line: object = CHAT, purpose: str = "fine-tune") -> str:
    content = io.BytesIO(json.dumps(line).encode() + b"\n")
    return store.files.add(content, filename="data.jsonl", purpose=purpose).id


@pytest.fixture
def data(house: House) -> str:
    return keep(house.store)


def queue(house: House) -> JobQueue:
    return JobQueue(house.store.database, base=BASE)


def claimed(house: House) -> Lease:
    lease = queue(house).claim("w")
    assert lease is not None
    return lease


def end_well(house: House, lease: Lease, **result: Any) -> None:
    with house.store.database.write() as connection:
        succeed(connection, lease, result, "Published.")


async def test_a_jobs_life_with_the_openai_client(
    house: House, client: openai.AsyncOpenAI, data: str
):
    made = await client.fine_tuning.jobs.create(
        model=BASE, training_file=data, suffix="My Model!", metadata={"team": "a"}, seed=7
    )
    assert made.id.startswith("ftjob-")
    assert (made.object, made.status, made.model) == ("fine_tuning.job", "queued", BASE)
    assert (made.training_file, made.validation_file) == (data, None)
    assert (made.seed, made.metadata, made.organization_id) == (7, {"team": "a"}, "default")
    assert (made.fine_tuned_model, made.finished_at, made.trained_tokens) == (None, None, None)
    assert (made.result_files, made.error, made.integrations) == ([], None, [])
    assert made.hyperparameters.n_epochs == made.hyperparameters.batch_size == "auto"
    name = f"my-model-{made.id[-8:]}"
    extra = made.model_extra or {}
    assert (extra["adapterd"]["name"], extra["progress"]) == (name, None)
    assert await client.fine_tuning.jobs.retrieve(made.id) == made

    lease = claimed(house)
    assert JobRequest.model_validate(lease.job.spec).adapterd.name == name
    told = {"step": 3, "steps": 9, "loss": 1.5, "epoch": 0.3, "estimated_finish": 2_000_000_000}
    queue(house).renew(lease, progress=told)
    running = await client.fine_tuning.jobs.retrieve(made.id)
    assert (running.status, running.estimated_finish) == ("running", 2_000_000_000)
    wanted = {"step": 3, "steps": 9, "loss": 1.5, "tokens_per_second": None, "epoch": 0.3}
    assert (running.model_extra or {})["progress"] == wanted

    settled = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    end_well(
        house,
        lease,
        fine_tuned_model=name,
        result_files=["file-9"],
        trained_tokens=123,
        hyperparameters=settled,
    )
    done = await client.fine_tuning.jobs.retrieve(made.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", name, 123)
    assert (done.result_files, done.estimated_finish) == (["file-9"], None)
    assert done.finished_at is not None
    assert done.hyperparameters.model_dump() == settled
    assert done.method is not None
    assert done.method.type == "supervised"
    assert done.method.supervised is not None
    assert done.method.supervised.hyperparameters is not None
    assert done.method.supervised.hyperparameters.model_dump() == settled


async def test_what_is_asked_is_kept_and_told(house: House, client: openai.AsyncOpenAI):
    file = keep(house.store, PREFERENCE)
    options = {"name": "polite", "peft": {"rank": 4, "targets": ["q_proj"]}, "max_steps": 10}
    made = await client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file,
        validation_file=file,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}},
        integrations=[],
        metadata=None,
        extra_body={"adapterd": options},
    )
    assert made.method is not None
    assert made.method.dpo is not None
    hyper = made.method.dpo.hyperparameters
    assert hyper is not None
    assert (hyper.beta, hyper.n_epochs, hyper.batch_size) == (0.2, 2, "auto")
    assert made.hyperparameters.n_epochs == 2
    assert (made.validation_file, made.metadata) == (file, None)
    ours = (made.model_extra or {})["adapterd"]
    assert (ours["name"], ours["peft"]["rank"], ours["max_steps"]) == ("polite", 4, 10)
    spec = claimed(house).job.spec
    asked = JobRequest.model_validate(spec)
    assert asked.model_dump(mode="json", exclude_none=True) == spec
    assert asked.seed == made.seed
    assert 0 <= made.seed < 2**31


async def test_openais_older_place_of_hyperparameters(client: openai.AsyncOpenAI, data: str):
    made = await client.fine_tuning.jobs.create(
        model=BASE,
        training_file=data,
        hyperparameters={"n_epochs": 4, "learning_rate_multiplier": 2},
        method={"type": "supervised"},
    )
    assert made.hyperparameters.n_epochs == 4
    assert made.method is not None
    assert made.method.supervised is not None
    hyper = made.method.supervised.hyperparameters
    assert hyper is not None
    assert (hyper.n_epochs, hyper.learning_rate_multiplier) == (4, 2.0)


async def test_seeds_and_names_that_are_not_asked_for_differ(client: openai.AsyncOpenAI, data: str):
    jobs = [await client.fine_tuning.jobs.create(model=BASE, training_file=data) for _ in "ab"]
    assert jobs[0].seed != jobs[1].seed
    names = [(job.model_extra or {})["adapterd"]["name"] for job in jobs]
    assert names == [f"ft-{job.id[-8:]}" for job in jobs]


@pytest.mark.parametrize(
    ("suffix", "stem"),
    [
        (None, "ft"),
        ("…", "ft"),
        ("Sales Team/2", "sales-team-2"),
        ("-._x", "x"),
        ("A" * 64, "a" * 54),
        ("a" * 53 + "-b", "a" * 53),
    ],
)
def test_names_of_suffixes(suffix: str | None, stem: str):
    made = _made_name(suffix, "ftjob-0123456789abcdef01234567")
    assert made == f"{stem}-01234567"
    assert (
        JobRequest.model_validate(
            {"model": "b", "training_file": "f", "adapterd": {"name": made}}
        ).adapterd.name
        == made
    )


@pytest.mark.parametrize(
    ("change", "code", "param", "said"),
    [
        ({"model": None}, "invalid_request", "model", "model"),
        ({"training_file": None}, "invalid_request", "training_file", "is required"),
        ({"training_file": "file-none"}, "invalid_request", "training_file", "no file has the id"),
        ({"training_file": "\0"}, "invalid_request", "training_file", "no file has the id"),
        ({"validation_file": "file-0"}, "invalid_request", "validation_file", "no file has the id"),
        ({"n_epochs": 3}, "invalid_request", "n_epochs", "unknown parameter"),
        ({"seed": "7"}, "invalid_request", "seed", 'not "7"'),
        ({"suffix": ""}, "invalid_request", "suffix", "at least 1 character"),
        ({"metadata": {"k": 1}}, "invalid_request", "metadata.k", "valid string"),
        ({"metadata": {"k" * 65: "v"}}, "invalid_request", "metadata", "at most 64 characters"),
        (
            {"hyperparameters": {"n_epochs": 0}},
            "invalid_request",
            "hyperparameters.n_epochs",
            "greater than or equal to 1",
        ),
        (
            {"hyperparameters": {"batch_size": "many"}},
            "invalid_request",
            "hyperparameters.batch_size",
            "must be 'auto'",
        ),
        (
            {"hyperparameters": {"n_epochs": 3}, "method": {"type": "dpo"}},
            "invalid_request",
            "hyperparameters",
            "method.dpo.hyperparameters",
        ),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}},
            "unsupported_parameter",
            "method.type",
            "'reinforcement' is not supported",
        ),
        ({"method": {"type": "dpo"}}, "invalid_request", "training_file", "its lines are chat"),
        (
            {"method": {"dpo": {}}},
            "invalid_request",
            "method",
            "does not go with the type 'supervised'",
        ),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            "unsupported_parameter",
            "integrations",
            "'wandb' is not supported",
        ),
        ({"adapterd": {"name": "Bad"}}, "invalid_request", "adapterd.name", "pattern"),
        ({"adapterd": {"rank": 4}}, "invalid_request", "adapterd.rank", "unknown parameter"),
        ({"adapterd": {"name": "a"}, "suffix": "b"}, "invalid_request", "suffix", "leave one"),
        (
            {"adapterd": {"task": "classification"}},
            "unsupported_parameter",
            "adapterd.task",
            'send "publish": false',
        ),
        (
            {"adapterd": {"teacher": {}}},
            "invalid_request",
            "adapterd.teacher",
            "say whose: 'job', or 'name'",
        ),
        (
            {"adapterd": {"teacher": {"job": "ftjob-" + "0" * 24}}},
            "invalid_request",
            "adapterd.teacher.job",
            "no fine-tuning job of this base",
        ),
        (
            {"adapterd": {"teacher": {"name": "big"}, "packing": True}},
            "invalid_request",
            "adapterd.packing",
            "as one text",
        ),
    ],
)
async def test_bodies_at_fault_are_told_which_field(
    house: House, data: str, change: dict[str, Any], code: str, param: str, said: str
):
    body = {"model": BASE, "training_file": data} | change
    body = {key: value for key, value in body.items() if value is not None or key == "model"}
    reply = await house.client.post("/v1/fine_tuning/jobs", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param), reply.text
    assert said in error["message"]
    assert house.app.state.services.jobs.list(limit=1) == ((), False)


async def test_a_teacher_is_a_job_that_has_succeeded(house: House, data: str):
    plain = {"model": BASE, "training_file": data}
    made = (await house.client.post("/v1/fine_tuning/jobs", json=plain)).json()["id"]
    body = {"model": BASE, "training_file": data, "adapterd": {"teacher": {"job": made}}}
    reply = await house.client.post("/v1/fine_tuning/jobs", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "adapterd.teacher.job")
    assert "is queued; a teacher is a job that has succeeded" in error["message"]
    end_well(house, claimed(house), fine_tuned_model="ft")
    reply = await house.client.post("/v1/fine_tuning/jobs", json=body)
    assert reply.status_code == 200, reply.text
    wanted = {"job": made, "weight": 0.5, "temperature": 1.0}
    assert claimed(house).job.spec["adapterd"]["teacher"] == wanted


async def test_a_body_that_is_no_json_object(house: House):
    for body, status in ((b"[1]", 400), (b'{"a": 1, "a": 2}', 400)):
        headers = {"content-type": "application/json"}
        reply = await house.client.post("/v1/fine_tuning/jobs", content=body, headers=headers)
        assert reply.status_code == status
    reply = await house.client.post("/v1/fine_tuning/jobs", content=b"{}")
    assert reply.status_code == 415


@pytest.mark.parametrize(
    ("line", "purpose", "field", "said"),
    [
        (PREFERENCE, "fine-tune", "training_file", "its lines are preference; the method"),
        (PREFERENCE, "fine-tune", "validation_file", "takes chat or text"),
        (CHAT, "fine-tune-results", "training_file", "is kept for 'fine-tune-results'"),
    ],
)
async def test_files_that_do_not_fit(
    house: House, client: openai.AsyncOpenAI, data: str, line, purpose: str, field: str, said: str
):
    files: Any = {"training_file": data} | {field: keep(house.store, line, purpose)}
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        await client.fine_tuning.jobs.create(model=BASE, **files)
    assert refused.value.param == field


async def test_a_base_without_a_template_learns_text_only(tmp_path: Path):
    async with make_house(tmp_path, chat_template=None) as house, served(house.app) as url:
        chat, text = keep(house.store, CHAT), keep(house.store, TEXT)
        async with open_client(url) as client:
            with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
                await client.fine_tuning.jobs.create(model=BASE, training_file=chat)
            assert refused.value.param == "training_file"
            assert await client.fine_tuning.jobs.create(model=BASE, training_file=text)


async def test_a_deleted_file_trains_nothing(client: openai.AsyncOpenAI, data: str):
    await client.files.delete(data)
    with pytest.raises(openai.BadRequestError, match="no file has the id") as refused:
        await client.fine_tuning.jobs.create(model=BASE, training_file=data)
    assert refused.value.param == "training_file"


async def test_only_the_base_is_trained(house: House, client: openai.AsyncOpenAI, data: str):
    for unknown in ("nobody", "sql:none", "gpt-4o-mini"):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.fine_tuning.jobs.create(model=unknown, training_file=data)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    publish(house.store, "sql")
    for adapter in ("sql", "sql@1"):
        with pytest.raises(openai.BadRequestError, match="continue training") as refused:
            await client.fine_tuning.jobs.create(model=adapter, training_file=data)
        assert refused.value.param == "model"


async def test_the_bases_name_is_no_adapters(tmp_path: Path):
    async with make_house(tmp_path, base="base") as house, served(house.app) as url:
        file = keep(house.store)
        async with open_client(url) as client:
            with pytest.raises(openai.ConflictError) as refused:
                await client.fine_tuning.jobs.create(
                    model="base", training_file=file, extra_body={"adapterd": {"name": "base"}}
                )
            assert (refused.value.code, refused.value.param) == ("name_reserved", "adapterd.name")


@pytest.mark.parametrize(
    ("peft", "param"),
    [
        ({"method": "dora"}, "adapterd.peft.method"),
        ({"method": "full"}, "adapterd.peft.method"),
        ({"modules_to_save": ["embed_tokens"]}, "adapterd.peft.modules_to_save"),
        ({"trainable_tokens": ["hell"]}, "adapterd.peft.trainable_tokens"),
    ],
)
async def test_what_cannot_be_served_is_not_published(
    client: openai.AsyncOpenAI, data: str, peft: dict[str, Any], param: str
):
    jobs, options = client.fine_tuning.jobs, {"peft": peft}
    with pytest.raises(openai.BadRequestError, match='"publish": false') as refused:
        await jobs.create(model=BASE, training_file=data, extra_body={"adapterd": options})
    assert refused.value.param == param
    kept = {"adapterd": options | {"publish": False}}
    assert await jobs.create(model=BASE, training_file=data, extra_body=kept)


async def test_lists_page_and_filter_by_metadata(
    house: House, client: openai.AsyncOpenAI, data: str
):
    said = [{"team": "a", 'k"[x]. é': ""}, {"team": "b"}, None, {"team": "a", "run": "1&2=3"}]
    jobs = client.fine_tuning.jobs
    made = [(await jobs.create(model=BASE, training_file=data, metadata=one)).id for one in said]

    async def found(**query: Any) -> set[str]:
        ids = [job.id async for job in jobs.list(limit=1, **query)]
        assert len(ids) == len(set(ids))
        return set(ids)

    assert await found() == await found(metadata={}) == set(made)
    assert await found(metadata={"team": "a"}) == {made[0], made[3]}
    assert await found(metadata={"team": "a", "run": "1&2=3"}) == {made[3]}
    assert await found(metadata={'k"[x]. é': ""}) == {made[0]}
    assert await found(metadata={"team": "c"}) == set()
    assert await found(extra_query={"metadata": "null"}) == {made[2]}
    first = await jobs.list(limit=3)
    assert (len(first.data), first.has_more) == (3, True)
    for query in (
        {"metadata": "x"},
        {"metadata": "null", "metadata[team]": "a"},
        {"metadata[]": "x"},
        {"limit": 0},
        {"limit": 101},
        {"after": "ftjob-none"},
        {"after": "\0"},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await jobs.list(extra_query=query)
        assert refused.value.param in query


async def test_events_page_the_newest_first(house: House, client: openai.AsyncOpenAI, data: str):
    jobs = client.fine_tuning.jobs
    made = await jobs.create(model=BASE, training_file=data)
    other = await jobs.create(model=BASE, training_file=data)
    lease = claimed(house)
    seen, rest = (made, other) if lease.job.id == made.id else (other, made)
    for step in range(5):
        loss = float("nan") if step == 4 else 0.5
        queue(house).note(lease, f"Step {step}", data={"step": step, "train_loss": loss})
    queue(house).note(lease, "Careful.", level="warn", data={"cause": "x"})
    events = [event async for event in jobs.list_events(seen.id, limit=2)]
    assert [event.message for event in events] == [
        "Careful.",
        *(f"Step {step}" for step in reversed(range(5))),
        "Worker w has taken the job.",
        "The job is queued.",
    ]
    assert [event.type for event in events] == ["message", *["metrics"] * 5, "message", "message"]
    assert (events[0].level, events[0].data) == ("warn", {"cause": "x"})
    assert events[1].data == {"step": 4, "train_loss": None}
    assert events[2].data == {"step": 3, "train_loss": 0.5}
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    assert all(event.id.startswith("ftevent-") for event in events)
    assert [event.message async for event in jobs.list_events(rest.id)] == ["The job is queued."]
    assert (await jobs.list_events(seen.id, after=f"ftevent-{'9' * 18}", limit=1)).has_more
    for after in ("8", "ftevent-", "ftevent-x", "ftevent-" + "9" * 19):
        with pytest.raises(openai.BadRequestError) as refused:
            await jobs.list_events(seen.id, after=after)
        assert refused.value.param == "after"
    for limit in (0, 101):
        with pytest.raises(openai.BadRequestError):
            await jobs.list_events(seen.id, limit=limit)


async def test_checkpoints(house: House, client: openai.AsyncOpenAI, data: str, tmp_path: Path):
    made = await client.fine_tuning.jobs.create(model=BASE, training_file=data)
    listed = client.fine_tuning.jobs.checkpoints
    assert (await listed.list(made.id)).data == []
    store, lease = house.store, claimed(house)
    shelf = CheckpointShelf(store.database, store.objects, store.staging)
    for step in (10, 20, 30):
        metrics = {"loss": 1 / step, "mean_token_accuracy": 0.5, "eval_loss": 0.25, "lr": 1}
        shelf.save(lease, tmp_path / "store", step=step, metrics=metrics)
    found = [one async for one in listed.list(made.id, limit=1)]
    assert [one.step_number for one in found] == [30, 20, 10]
    one = found[0]
    assert (one.object, one.fine_tuning_job_id) == ("fine_tuning.job.checkpoint", made.id)
    assert one.fine_tuned_model_checkpoint == one.id
    assert one.metrics.model_dump(exclude_unset=True) == {
        "step": 30,
        "train_loss": 1 / 30,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": 0.25,
        "valid_mean_token_accuracy": None,
    }
    for after in ("ftckpt-none", "\0"):
        with pytest.raises(openai.BadRequestError) as refused:
            await listed.list(made.id, after=after)
        assert refused.value.param == "after"


async def test_steering(house: House, client: openai.AsyncOpenAI, data: str):
    jobs = client.fine_tuning.jobs
    made = await jobs.create(model=BASE, training_file=data)
    assert (await jobs.pause(made.id)).status == "paused"
    assert (await jobs.pause(made.id)).status == "paused"
    assert (await jobs.resume(made.id)).status == "queued"
    with pytest.raises(openai.ConflictError, match="is queued, not paused"):
        await jobs.resume(made.id)
    lease = claimed(house)
    assert (await jobs.pause(made.id)).status == "running"
    assert queue(house).renew(lease) == "pause"
    assert (await jobs.cancel(made.id)).status == "running"
    queue(house).heed(lease)
    ended = await jobs.retrieve(made.id)
    assert (ended.status, ended.error) == ("cancelled", None)
    assert ended.finished_at is not None
    for act in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError, match="cancelled") as refused:
            await act(made.id)
        assert refused.value.code == "conflict"


async def test_a_failed_job_says_why(house: House, client: openai.AsyncOpenAI, data: str):
    made = await client.fine_tuning.jobs.create(model=BASE, training_file=data)
    queue(house).fail(claimed(house), "out of memory", final=True)
    failed = await client.fine_tuning.jobs.retrieve(made.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("training_failed", "out of memory")


async def test_the_report(house: House, client: openai.AsyncOpenAI, data: str):
    for result in ({"report": {"eval_loss": 0.5}}, {}):
        made = await client.fine_tuning.jobs.create(model=BASE, training_file=data)
        path = f"/v1/fine_tuning/jobs/{made.id}/report"
        reply = await house.client.get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
        assert "is queued" in reply.json()["error"]["message"]
        end_well(house, claimed(house), **result)
        reply = await house.client.get(path)
        if result:
            assert (reply.status_code, reply.json()) == (200, {"eval_loss": 0.5})
        else:
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("job_id", ["ftjob-none", f"ftjob-{'0' * 24}", "a\0b", "é"])
async def test_unknown_jobs(house: House, client: openai.AsyncOpenAI, job_id: str):
    jobs = client.fine_tuning.jobs
    asks: list[Any] = [jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events]
    for ask in (*asks, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as missing:
            await ask(job_id)
        assert missing.value.code == "job_not_found"
    reply = await house.client.get("/v1/fine_tuning/jobs/ftjob-none/report")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "job_not_found")


async def test_jobs_of_another_base_are_not_there(house: House, client: openai.AsyncOpenAI):
    made = JobBook(house.store.database, base="other").create({})
    assert (await client.fine_tuning.jobs.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await client.fine_tuning.jobs.retrieve(made.id)


async def test_a_draining_server_tells_but_takes_nothing(house: House, data: str):
    made = await house.client.post(
        "/v1/fine_tuning/jobs", json={"model": BASE, "training_file": data}
    )
    one = f"/v1/fine_tuning/jobs/{made.json()['id']}"
    house.app.state.services.drain()
    for path in ("/v1/fine_tuning/jobs", f"{one}/cancel", f"{one}/pause", f"{one}/resume"):
        reply = await house.client.post(path, json={})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining"), path
    for path in ("/v1/fine_tuning/jobs", one, f"{one}/events", f"{one}/checkpoints"):
        assert (await house.client.get(path)).status_code == 200, path


async def test_jobs_are_counted_by_status(house: House, client: openai.AsyncOpenAI, data: str):
    made = [await client.fine_tuning.jobs.create(model=BASE, training_file=data) for _ in "abc"]
    await client.fine_tuning.jobs.cancel(made[0].id)
    claimed(house)
    text = (await house.client.get("/metrics")).text
    lines = {line for line in text.splitlines() if line.startswith("adapterd_training_jobs{")}
    wanted = {"queued": 1, "running": 1, "paused": 0, "succeeded": 0, "failed": 0, "cancelled": 1}
    assert lines == {
        f'adapterd_training_jobs{{status="{status}"}} {count:.1f}'
        for status, count in wanted.items()
    }
