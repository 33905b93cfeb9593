"""`adapterd train` and `adapterd jobs`, against the real app behind a real server.

The tests are the worker: they take jobs from the queue that the server fills, as a worker does.
"""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters_store.store import UploadedFile
from server.cli import main
from tests.e2e.server_process import ADAPTERD
from tests.server.api.conftest import BASE, House, make_house, served, until
from tests.server.api.stores import FACTS, adapter_files
from tests.support.terminal import Terminal
from training.jobs import JobBook, JobQueue, Lease, succeed

LINES = "".join(json.dumps({"prompt": f"{n} ", "completion": "x"}) + "\n" for n in range(9))
NEW = {
    "eval_loss": 0.5, "perplexity": 1.6487, "exact_match": 0.75, "f1": 0.8125, "tokens": 1200,
    "examples": 40, "general_loss": 3.25, "kl_from_base": 0.125,
}  # fmt: skip
OLD = NEW | {"eval_loss": 2.5, "exact_match": 0.125, "kl_from_base": 0.0}


@dataclass
class Command:
    """`adapterd ARGUMENTS` under way in a thread, for the server runs in this loop."""

    task: asyncio.Task[int]
    read: Callable[[], tuple[str, str]]
    out: str = ""
    err: str = ""

    async def says(self, text: str) -> None:
        await until(lambda: text in self._so_far() or self.task.done())
        assert text in self._so_far(), self.out + self.err

    async def ends(self) -> int:
        status = await asyncio.wait_for(self.task, 20)
        self._so_far()
        return status

    def _so_far(self) -> str:
        out, err = self.read()
        self.out, self.err = self.out + out, self.err + err
        return self.out


@dataclass
class Place:
    """A server, its command line and its worker."""

    house: House
    url: str
    start: Callable[..., Command]

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.house.store.database, base=BASE)

    async def run(self, *arguments: str) -> Command:
        """Started, and waited for."""
        command = self.start(*arguments)
        await command.ends()
        return command

    async def claimed(self) -> Lease:
        found: list[Lease] = []
        await until(lambda: found or found.extend(filter(None, [self.queue.claim("w1")])))
        return found[0]

    def reach(self, lease: Lease, step: int, steps: int = 300) -> None:
        finish = int(time.time()) + 100
        told = {"step": step, "steps": steps, "loss": 2 - step / steps, "epoch": step / 100}
        speed = {"tokens_per_second": 5210.4, "estimated_finish": finish}
        assert self.queue.renew(lease, told | speed) == ""

    def publish(self, name: str, seed: int, *, promote: bool = True) -> dict[str, Any]:
        files = [UploadedFile(one, io.BytesIO(it)) for one, it in adapter_files(seed).items()]
        made = self.house.store.publish(name, files, check=lambda _: FACTS, promote=promote)
        return {"name": name, "version": made.version.number, "digest": made.version.digest}

    def finish(self, lease: Lease, adapter: Mapping[str, Any] | None, **report: Any) -> None:
        whole = {
            "job": lease.job.id,
            "adapter": adapter,
            "plan": {},
            "trained_parameters": 1_000,
            "total_parameters": 100_000,
            "trained_tokens": 12_345,
            "seconds": 62.0,
            "scores": {"base": OLD, "current": None, "new": NEW},
            "forgetting": 0.0125,
            "gate": None,
            "curves": {"train": [[1, 2.0]], "eval": []},
        } | report
        shelf = self.house.store.files
        kept = {".report.json": json.dumps(whole), ".svg": "<svg/>", ".adapter.zip": "PK"}
        files = [
            shelf.add(io.BytesIO(data.encode()), filename=lease.job.id + end, purpose="results").id
            for end, data in kept.items()
        ]
        result = {
            "fine_tuned_model": adapter and adapter["name"],
            "result_files": files,
            "report": whole,
        }
        with self.house.store.database.write() as connection:
            succeed(connection, lease, result, "The job is done.")


@pytest.fixture
async def place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    monkeypatch.setattr("server.follow_job.POLL_S", 0.02)
    monkeypatch.setattr("server.patience.RETRY_S", 0.02)
    monkeypatch.setattr("server.job_view.PLAIN_EVERY_S", 0.0)

    def ran(arguments: tuple[str, ...]) -> int:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return left.value.code if isinstance(left.value.code, int) else 0

    def start(*arguments: str) -> Command:
        task = asyncio.create_task(asyncio.to_thread(ran, arguments))
        return Command(task, lambda: tuple(capsys.readouterr()))

    async with make_house(tmp_path / "data") as house, served(house.app) as url:
        monkeypatch.setenv("ADAPTERD_SERVER", url)
        yield Place(house, url, start)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(LINES)
    return path


async def test_train_from_the_file_to_the_adapter(place: Place, data: Path) -> None:
    validation = data.with_name("held-out.jsonl")
    validation.write_text(LINES)
    command = place.start(
        "train", str(data), "--name", "sql", "--rank", "4", "--epochs", "3", "--validation",
        str(validation),
    )  # fmt: skip
    await command.says("The job is queued.")
    lease = await place.claimed()
    spec = lease.job.spec
    assert spec["adapterd"]["name"] == "sql"
    assert spec["adapterd"]["peft"]["rank"] == 4
    shelf = place.house.store.files
    sent = [shelf.get(spec[field]) for field in ("training_file", "validation_file")]
    assert [file.filename for file in sent] == ["train.jsonl", "held-out.jsonl"]
    assert {file.bytes for file in sent} == {len(LINES)}
    await command.says("Worker w1 has taken the job.")
    place.reach(lease, 30)
    await command.says("step 30/300  epoch 0.3  loss 1.9000  5,210 tokens/s  1 min ")
    place.queue.note(lease, "An old loss came back.", level="warn")
    await command.says("  warn: An old loss came back.\n")
    place.reach(lease, 300)
    await command.says("step 300/300  epoch 3.0  loss 1.0000  5,210 tokens/s\n")
    place.finish(lease, place.publish("sql", 1))
    assert await command.ends() == 0
    assert command.err == ""
    for line in (
        "The job is done.", "│ loss ", "sql version 1, ", "1,000 parameters (1.00% of all)",
        'Try it: adapterd complete --adapter sql "…"\n',
    ):  # fmt: skip
        assert line in command.out
    for once in ("The job is queued.", "An old loss", "step 30/300", "The job is done."):
        assert command.out.count(once) == 1
    assert "No worker" not in command.out


async def test_a_job_that_fails_is_status_1_with_the_cause(place: Place, data: Path) -> None:
    command = place.start("train", str(data), "--name", "sql")
    lease = await place.claimed()
    place.queue.fail(lease, "the loss is no number at step 3", final=True)
    assert await command.ends() == 1
    assert command.err == f"adapterd: {lease.job.id} failed: the loss is no number at step 3\n"


async def test_a_gate_that_is_not_passed_is_told_and_the_version_named(
    place: Place, data: Path
) -> None:
    command = place.start("train", str(data), "--name", "sql", "--max-loss", "0.1")
    lease = await place.claimed()
    assert lease.job.spec["adapterd"]["gate"] == {"metric": "eval_loss", "max": 0.1}
    place.publish("sql", 1)
    gate = {"passed": False, "reasons": ["the loss is 0.5, over 0.1"]}
    place.finish(lease, place.publish("sql", 2, promote=False), gate=gate)
    assert await command.ends() == 0
    assert "gate not passed: the loss is 0.5, over 0.1\n" in command.out
    assert "--adapter sql@2 " in command.out


async def test_what_is_not_published_is_a_file_to_save(
    place: Place, data: Path, tmp_path: Path
) -> None:
    command = place.start("train", str(data), "--no-publish")
    lease = await place.claimed()
    assert lease.job.spec["adapterd"]["publish"] is False
    place.finish(lease, None)
    assert await command.ends() == 0
    assert "was not published" in command.out
    assert f"{lease.job.id}.adapter.zip" in command.out
    target = tmp_path / "mine.zip"
    assert await (await saved(place, lease, target)).task == 0
    assert target.read_bytes() == b"PK"


async def test_a_job_without_a_report_has_succeeded_all_the_same(place: Place, data: Path) -> None:
    command = place.start("train", str(data), "--name", "sql")
    lease = await place.claimed()
    made = {"fine_tuned_model": place.publish("sql", 1)["name"]}
    with place.house.store.database.write() as connection:
        succeed(connection, lease, made, "The job is done.")
    assert await command.ends() == 0
    assert "has no report\n" in command.out
    assert command.out.endswith('Try it: adapterd complete --adapter sql "…"\n')


async def saved(place: Place, lease: Lease, target: Path) -> Command:
    return await place.run("jobs", "report", lease.job.id, "--output", str(target))


async def test_a_queue_without_workers_is_said_once(
    place: Place, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.follow_job.UNCLAIMED_S", 0.1)
    command = place.start("train", str(data), "--name", "sql")
    await command.says("No worker has taken the job yet. If none is running: adapterd worker\n")
    await asyncio.sleep(0.3)
    book = JobBook(place.house.store.database, base=BASE)
    ((job,), _) = book.list(limit=1)
    book.cancel(job.id)
    assert await command.ends() == 1
    assert command.out.count("No worker") == 1
    assert command.err == f"adapterd: {job.id} was cancelled\n"


async def test_detached(place: Place, data: Path) -> None:
    command = await place.run("train", str(data), "--name", "sql", "--detach")
    job_id = command.out.split()[0]
    assert command.out == f"{job_id} is queued\nFollow it: adapterd jobs follow {job_id}\n"
    lease = await place.claimed()
    assert lease.job.id == job_id
    place.reach(lease, 30)
    listed = (await place.run("jobs", "list")).out
    for word in (job_id, " sql ", " running ", " 30/300 ", " 1.9000 "):
        assert word in listed
    (found,) = json.loads((await place.run("jobs", "list", "--json")).out)
    assert json.loads((await place.run("jobs", "show", job_id, "--json")).out) == found
    assert f"id                {job_id}\n" in (await place.run("jobs", "show", job_id)).out
    events = (await place.run("jobs", "events", job_id)).out.splitlines()
    assert [line[21:] for line in events] == ["The job is queued.", "Worker w1 has taken the job."]


async def test_steering(place: Place, data: Path) -> None:
    for wanted in ("pause", "cancel"):
        await place.run("train", str(data), "--name", "sql", "--detach")
        lease = await place.claimed()
        job_id = lease.job.id
        said = (await place.run("jobs", wanted, job_id)).out
        assert said.startswith(f"{job_id} is asked to {wanted}; ")
        assert place.queue.renew(lease) == wanted
        place.queue.heed(lease)
        if wanted == "pause":
            assert (await place.run("jobs", "pause", job_id)).out == f"{job_id} is paused\n"
            assert (await place.run("jobs", "resume", job_id)).out == f"{job_id} is queued\n"
            assert (await place.run("jobs", "cancel", job_id)).out == f"{job_id} is cancelled\n"
    again = await place.run("jobs", "cancel", job_id)
    assert await again.task == 1
    assert again.err == f"adapterd: the job {job_id} is cancelled already\n"


async def test_report(place: Place, data: Path, tmp_path: Path) -> None:
    await place.run("train", str(data), "--name", "sql", "--detach")
    lease = await place.claimed()
    job_id = lease.job.id
    early = await place.run("jobs", "report", job_id)
    assert await early.task == 1
    assert "is running" in early.err
    gate = {"passed": True, "reasons": []}
    scores = {"base": OLD, "current": OLD | {"f1": None}, "new": NEW}
    place.finish(lease, place.publish("sql", 1), gate=gate, scores=scores)
    shown = (await place.run("jobs", "report", job_id)).out
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in shown.splitlines()
        if line.startswith("│")
    ]
    assert ["loss", "2.5000", "2.5000", "0.5000"] in rows
    assert ["exact match", "12.5%", "12.5%", "75.0%"] in rows
    assert ["F1", "81.2%", "", "81.2%"] in rows
    assert ["KL from the base", "0.0000", "0.0000", "0.1250"] in rows
    assert "forgetting: +0.0125 nats a token" in shown
    assert shown.endswith("gate passed\n")
    whole = json.loads((await place.run("jobs", "report", job_id, "--json")).out)
    target = tmp_path / "report.json"
    assert await (await saved(place, lease, target)).task == 0
    assert json.loads(target.read_text()) == whole
    again = await saved(place, lease, target)
    assert "exists already" in again.err
    for name in ("report.html", "report"):
        other = await saved(place, lease, tmp_path / name)
        assert await other.task == 1
        assert f"{job_id}.svg" in other.err
    assert {path.name for path in tmp_path.iterdir()} == {"data", "train.jsonl", "report.json"}


async def test_following_late_shows_the_last_events_and_every_new_one(
    place: Place, data: Path
) -> None:
    await place.run("train", str(data), "--name", "sql", "--detach")
    lease = await place.claimed()
    for number in range(25):
        place.queue.note(lease, f"Note {number}.")
    command = place.start("jobs", "follow", lease.job.id)
    await command.says("Note 24.")
    assert "Note 4." not in command.out
    for number in range(25, 130):  # more than a page, and the server cannot answer in between
        place.queue.note(lease, f"Note {number}.")
    await command.says("Note 129.")
    place.queue.fail(lease, "no", final=True)
    assert await command.ends() == 1
    told = [line.split()[-1] for line in command.out.splitlines() if " Note " in line]
    assert told == [f"{number}." for number in range(5, 130)]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--local", "--detach"), 2, "--detach does not go with --local"),
        (("--local", "--server", "http://x"), 2, "--server does not go with --local"),
        (("--device", "cpu"), 2, "--device is for --local"),
        (("--local", "--threads", "none"), 2, "--threads none: "),
        (("--beta", "0.1"), 2, "--beta is an option of --dpo"),
        (("--rank", "0"), 2, "--rank"),
        (("--name", "A B"), 1, "name"),
        (("--dpo",), 1, "train.jsonl: its lines are text; "),
    ],
)
async def test_what_is_refused_leaves_nothing(
    place: Place, data: Path, arguments: tuple[str, ...], status: int, says: str
) -> None:
    command = await place.run("train", str(data), *arguments)
    assert (await command.task, command.out) == (status, "")
    assert says in command.err
    assert place.house.store.files.list(limit=1, order="asc")[0] == ()
    assert place.queue.claim("w") is None


async def test_a_bad_line_is_told_with_its_file(place: Place, data: Path) -> None:
    bad = data.with_name("bad.jsonl")
    bad.write_text(LINES + "{}\n")
    command = await place.run("train", str(data), "--validation", str(bad))
    assert await command.task == 1
    assert command.err.startswith(f"adapterd: {bad}: 1 line cannot be trained on; line 10: ")
    assert place.house.store.files.list(limit=1, order="asc")[0] == ()


async def test_a_server_that_comes_back_is_followed_on(
    tmp_path: Path, data: Path, place: Place
) -> None:
    await place.run("train", str(data), "--name", "sql", "--detach")
    lease = await place.claimed()
    async with served(place.house.app) as url:
        command = place.start("jobs", "follow", lease.job.id, "--server", url)
        await command.says("has taken the job")
    await command.says("Asking again…")
    port = int(url.rpartition(":")[2])
    async with served(place.house.app, port=port):
        place.queue.note(lease, "I went on.")
        await command.says("I went on.")
        place.queue.fail(lease, "no", final=True)
        assert await command.ends() == 1
    assert command.out.count("Asking again") == 1


async def test_a_server_that_stays_away_is_an_error(
    data: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.patience.OUTAGE_S", 0.1)
    await place.run("train", str(data), "--name", "sql", "--detach")
    lease = await place.claimed()
    async with served(place.house.app) as url:
        command = place.start("jobs", "follow", lease.job.id, "--server", url)
        await command.says("has taken the job")
    assert await command.ends() == 1
    assert f"no server answers at {url}" in command.err
    assert f"adapterd jobs follow {lease.job.id} --server {url}" in command.err


async def test_a_terminal_shows_it_live_and_ctrl_c_leaves_it_running(
    place: Place, data: Path
) -> None:
    arguments = ("train", str(data), "--name", "sql")
    with Terminal([*ADAPTERD, *arguments]) as terminal:
        lease = await place.claimed()
        place.queue.note(lease, "A [bold]note[/bold].")
        place.reach(lease, 30)
        await until(lambda: "step 30/300" in terminal.text())
        await until(lambda: "A [bold]note[/bold]." in terminal.text())
        assert f"{lease.job.id}  running" in terminal.text()
        terminal.press_ctrl_c()
        assert await asyncio.to_thread(terminal.process.wait, 20) == 130
        text = terminal.text()
    assert f"{lease.job.id} goes on without you." in text
    assert f"adapterd jobs follow {lease.job.id}\r\n" in text
    assert f"adapterd jobs cancel {lease.job.id}\r\n" in text
    assert place.queue.renew(lease) == ""
