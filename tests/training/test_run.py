"""Jobs from claim to end: what is published, what is kept, and what each failure leaves behind."""

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import demo
from adapters_store.content import AdapterContent, AdapterFacts
from adapters_store.errors import AdapterNotFound, StoreCorrupt
from adapters_store.schema import checkpoints, jobs
from tests.training.house import LESSONS, House, chat_lines, house
from training import run, tasks
from training.base import load_model
from training.dataset import examples_of
from training.evaluation import View, loss
from training.examples import ChatExample
from training.tokens import tokenize


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "data") as opened:
        yield opened


def files_of(home: House, job_id: str) -> dict[str, bytes]:
    """The job's result files, by how their names end."""
    found = {}
    for file_id in (home.book.get(job_id).result or {}).get("result_files", ()):
        record, content = home.store.files.open(file_id)
        with content:
            found[record.filename.removeprefix(job_id + ".")] = content.read()
    return found


def kept_bytes(home: House) -> list[str]:
    """Checkpoints whose bytes are still kept, by the catalog."""
    with home.store.database.read() as connection:
        rows = connection.execute(checkpoints.select())
        return [row.id for row in rows if row.sha256 is not None]


def test_a_job_becomes_a_version_with_its_report(home: House) -> None:
    job = home.done(peft={"rank": 4})
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    assert job.result["fine_tuned_model"] == "yo@1"
    assert job.result["hyperparameters"]["batch_size"] == 4
    report = job.result["report"]
    base, new = report["scores"]["base"], report["scores"]["new"]
    assert report["scores"]["current"] is None
    assert new["eval_loss"] < 0.7 * base["eval_loss"]
    assert new["kl_from_base"] > 0.1
    assert base["kl_from_base"] is None
    assert report["forgetting"] == pytest.approx(new["general_loss"] - base["general_loss"])
    assert report["trained_tokens"] == job.result["trained_tokens"] > 300
    assert [step for step, _ in report["curves"]["eval"]] == [6, 12]
    assert len(report["curves"]["train"]) == 12
    version = home.store.resolve("yo")
    assert (version.number, version.facts.rank) == (1, 4)
    assert version.facts.report["training"]["job"] == job.id
    assert version.facts.report["training"]["scores"] == report["scores"]
    assert report["adapter"]["digest"] == version.digest


def test_the_result_files_tell_the_same(home: House) -> None:
    job = home.done()
    files = files_of(home, job.id)
    assert set(files) == {"report.json", "report.html", "curves.svg"}
    told = json.loads(files["report.json"])
    assert job.result is not None
    assert told["scores"] == job.result["report"]["scores"]
    page = files["report.html"].decode()
    assert f"{told['scores']['new']['eval_loss']:.4g}" in page
    assert "<svg" in page
    assert b"<svg" in files["curves.svg"]


def test_the_same_job_again_is_the_same_version(home: House) -> None:
    first, second = home.done(), home.done()
    assert first.result is not None
    assert second.result is not None
    assert second.result["fine_tuned_model"] == first.result["fine_tuned_model"] == "yo@1"
    assert len(home.store.versions("yo")) == 1


def test_the_base_is_as_it_was(home: House) -> None:
    def digest() -> list[str]:
        files = sorted(demo.base_path().iterdir())
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    before = digest()
    assert home.done().status == "succeeded"
    assert digest() == before


def test_a_gate_that_fails_leaves_the_name_where_it_was(home: House) -> None:
    home.done()
    job = home.done(max_steps=2, gate={"better_than": "current"})
    assert job.status == "succeeded"
    assert job.result is not None
    assert job.result["fine_tuned_model"] == "yo@2"
    assert home.store.resolve("yo").number == 1
    verdict = job.result["report"]["gate"]
    assert not verdict["passed"]
    warning = [event.message for event in home.events(job.id) if event.level == "warn"]
    assert len(warning) == 1
    assert "the current's is" in warning[0]
    assert job.result["report"]["scores"]["current"]["eval_loss"] < verdict_loss(job.result)


def verdict_loss(result: Any) -> float:
    return result["report"]["scores"]["new"]["eval_loss"]


def test_a_gate_that_passes_moves_the_name(home: House) -> None:
    home.done(max_steps=2)
    job = home.done(gate={"better_than": "current", "max": 5.0, "max_forgetting": 20.0})
    assert home.store.resolve("yo").number == 2, home.told(job.id)


def test_what_fails_its_gate_is_no_names_first_version(home: House) -> None:
    job = home.done(gate={"max": 1e-6})
    assert job.status == "succeeded"
    assert job.result is not None
    assert "fine_tuned_model" not in job.result
    with pytest.raises(AdapterNotFound):
        home.store.get("yo")
    with zipfile.ZipFile(BytesIO(files_of(home, job.id)["adapter.zip"])) as packed:
        assert set(packed.namelist()) >= {"adapter_config.json", "adapter_model.safetensors"}


def test_nothing_is_published_unless_it_is_wanted(home: House) -> None:
    job = home.done(publish=False)
    assert job.status == "succeeded"
    assert "adapter.zip" in files_of(home, job.id)
    with pytest.raises(AdapterNotFound):
        home.store.get("yo")


def test_a_name_that_moves_meanwhile_is_compared_with_again(home: House) -> None:
    home.done(max_steps=2)
    moved = threading.Event()

    def check(content: AdapterContent) -> AdapterFacts:
        if not moved.is_set():  # another job is faster, once
            moved.set()
            home.done(max_steps=3, name="yo")
        return home.place.check(content)

    late = replace(home, place=replace(home.place, check=check))
    job_id = late.job(gate={"better_than": "current"})
    late.work()
    job = home.book.get(job_id)
    assert moved.is_set()
    assert job.status == "succeeded", home.told(job_id)
    assert job.result is not None
    assert "scored again" in home.told(job_id)
    assert [version.number for version in home.store.versions("yo")] == [1, 2, 3]
    assert home.store.resolve("yo").number == 3


def test_a_worker_that_lost_its_lease_leaves_nothing(home: House) -> None:
    def check(content: AdapterContent) -> AdapterFacts:
        with home.store.database.write() as connection:  # as if another had taken it
            connection.execute(jobs.update().values(fence=jobs.c.fence + 1))
        return home.place.check(content)

    late = replace(home, place=replace(home.place, check=check))
    job_id = late.job()
    before = home.store.files.list(limit=100, order="asc")[0]
    late.work()
    assert home.book.get(job_id).status == "running"
    assert home.store.files.list(limit=100, order="asc")[0] == before
    assert home.store.collect_garbage() == ()
    with pytest.raises(AdapterNotFound):
        home.store.get("yo")


def test_a_line_that_is_too_long_for_the_base_ends_the_job_by_its_number(home: House) -> None:
    job = home.done(chat_lines([*LESSONS[:3], ("long " * 2000, "yo")]))
    assert job.status == "failed"
    assert job.failures == 1
    assert job.error is not None
    assert job.error.startswith("1 line cannot be trained on; line 4: the example is ")


def test_a_file_of_which_no_line_fits_ends_the_job_too(home: House) -> None:
    job = home.done(chat_lines([("long " * 2000, "yo")]))
    assert (job.status, job.failures) == ("failed", 1)
    assert (job.error or "").startswith("1 line cannot be trained on; line 1: the example is ")


def test_a_rank_that_no_server_takes_is_no_version(home: House) -> None:
    job = home.done(peft={"method": "pissa", "rank": 512, "targets": ["q_proj"]})
    assert (job.status, job.failures) == ("failed", 1)
    assert job.error is not None
    assert job.error.startswith(
        "adapterd.peft.rank: the adapter would have rank 1024, over the 512"
    )
    assert "Step" not in home.told(job.id)


def test_three_failures_end_a_job_with_the_cause(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(tasks, "load_model", broken)
    job = home.done()
    assert (job.status, job.failures) == ("failed", 3)
    assert job.error == "RuntimeError: the device fell off"
    assert home.told(job.id).count("the device fell off") == 3


def test_a_failure_of_the_store_is_tried_again(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = run.publish_job, []

    def once(*args: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StoreCorrupt("a disk was away")
        real(*args, **more)

    monkeypatch.setattr(run, "publish_job", once)
    job = home.done()
    assert job.status == "succeeded"
    assert "Going on from step 12." in home.told(job.id)
    assert job.result is not None
    assert [step for step, _ in job.result["report"]["curves"]["train"]] == list(range(1, 13))


def test_a_paused_job_goes_on_to_the_same_bits(home: House) -> None:
    straight = home.done(name="straight", peft={"dropout": 0.1})
    job_id = home.job(name="paused", peft={"dropout": 0.1})
    stop = threading.Event()

    lease = home.place.queue.claim("worker-1")
    assert lease is not None
    stop.set()  # asks for it to be given back after its first step
    run.work_on(home.place, lease, stop)
    assert home.book.get(job_id).status == "queued"
    home.work()
    assert "Going on from step 1." in home.told(job_id)
    one, other = home.store.resolve("straight"), home.store.resolve("paused")
    assert one.digest == other.digest
    resumed = home.book.get(job_id)
    assert straight.result is not None
    assert resumed.result is not None
    assert resumed.result["trained_tokens"] == straight.result["trained_tokens"]
    assert resumed.result["report"]["curves"] == straight.result["report"]["curves"]


def test_a_cancelled_job_leaves_no_checkpoint(home: House) -> None:
    job_id = home.job(max_steps=2000, evals=0, checkpoint_every=1)
    worker = threading.Thread(target=home.work)
    worker.start()
    while not kept_bytes(home):
        assert worker.is_alive(), home.told(job_id)
    home.book.cancel(job_id)
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert home.book.get(job_id).status == "cancelled"
    assert kept_bytes(home) == []
    assert list((home.store.blob_root / "objects" / "checkpoints").iterdir()) == []


def test_preferences_are_learned(home: House) -> None:
    lines = b"".join(
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": f"hi {number}"}]},
                "preferred_output": [{"role": "assistant", "content": "yo"}],
                "non_preferred_output": [{"role": "assistant", "content": "good day to you"}],
            }
        ).encode()
        + b"\n"
        for number in range(60)
    )
    job = home.done(lines, method="dpo")
    assert job.status == "succeeded", job.error
    assert job.result is not None
    losses = [loss for _, loss in job.result["report"]["curves"]["train"]]
    assert losses[0] == pytest.approx(0.693, abs=0.01)  # ln 2: neither is preferred yet
    assert losses[-1] < 0.6
    scores = job.result["report"]["scores"]
    assert scores["new"]["eval_loss"] < scores["base"]["eval_loss"]


def test_early_stopping_keeps_the_best_weights(home: House) -> None:
    noise = [(f"hi {number}", "yo" if number % 2 else "oy") for number in range(60)]
    job = home.done(
        chat_lines(noise), max_steps=200, evals=40, early_stopping_patience=2, learning_rate=0.02
    )
    assert job.result is not None
    curve = job.result["report"]["curves"]["eval"]
    assert curve[-1][0] < 200
    best = min(loss for _, loss in curve)
    assert curve[-1][1] > best
    assert job.result["report"]["scores"]["new"]["eval_loss"] == pytest.approx(best, rel=0.02)


def test_packed_rows_do_not_see_each_other(home: House) -> None:
    job = home.done(packing=True, max_tokens=64, evals=1)
    assert job.status == "succeeded", job.error
    assert job.result is not None
    assert job.result["report"]["scores"]["new"]["eval_loss"] < 1.0


@pytest.mark.parametrize("method", ["dora", "ia3", "prompt-tuning", "bottleneck", "full"])
def test_methods_that_are_not_served_are_result_files(home: House, method: str) -> None:
    job = home.done(peft={"method": method}, publish=False, max_steps=8, learning_rate=0.01)
    assert job.status == "succeeded", job.error
    assert job.result is not None
    scores = job.result["report"]["scores"]
    assert scores["new"]["eval_loss"] < scores["base"]["eval_loss"]
    assert "adapter.zip" in files_of(home, job.id)


def test_a_general_file_is_what_is_not_to_be_forgotten(home: House) -> None:
    """Its loss, and not that on made-up text, is what forgetting is measured by."""
    general = chat_lines([("say it", "ahoy there"), ("say it again", "ahoy once more")])
    job = home.done(general_file=home.file(general))
    assert job.status == "succeeded", job.error
    assert job.result is not None
    scores = job.result["report"]["scores"]
    base = load_model(home.place.base)
    rows = [
        tokenize(example, home.place.base.tokenizer(), max_tokens=100)[0]
        for example in examples_of(BytesIO(general))
        if isinstance(example, ChatExample)
    ]
    assert scores["base"]["general_loss"] == pytest.approx(loss(View(base), rows), rel=1e-4)
