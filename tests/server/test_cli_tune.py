"""`adapterd tune` as it is typed: against the real app, whose queue a scripted worker empties."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from server.cli import main
from server.tune_jobs import ServerJobs
from server.tune_view import LiveTrials
from tests.e2e.server_process import ADAPTERD, ROOT
from tests.server.api.conftest import BASE, House, make_house, served, until
from tests.support.scripted_worker import ScriptedWorker, smooth
from training.jobs import JobBook
from training.tune.search_space import RANK, RATE
from training.tune.tuner import Row

LINES = "".join(json.dumps({"prompt": f"{n} ", "completion": "x"}) + "\n" for n in range(9))
Ran = tuple[int, str, str]  # exit status, stdout, stderr
Run = Callable[..., "asyncio.Task[Ran]"]


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr("training.tune.tuner.POLL_S", 0.02)
    monkeypatch.setattr("server.patience.RETRY_S", 0.05)
    monkeypatch.setenv("ADAPTERD_DATA_DIR", str(tmp_path / "own"))
    async with make_house(tmp_path / "data") as made:
        yield made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(LINES)
    return path


@pytest.fixture
def tune(capsys: pytest.CaptureFixture[str]) -> Run:
    def ran(arguments: tuple[str, ...]) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(["tune", *arguments])
        status = left.value.code
        out, err = capsys.readouterr()
        return (status if isinstance(status, int) else 0), out, err

    return lambda *arguments: asyncio.create_task(asyncio.to_thread(ran, arguments))


def worker(house: House, **options) -> ScriptedWorker:
    return ScriptedWorker(house.store.database, base=BASE, **{"loss": smooth, **options})


def specs(house: House) -> list:
    """By their trials, what publishes last: within a second their age has no order."""
    jobs, _ = JobBook(house.store.database, base=BASE).list(limit=100)
    found = [job.spec for job in jobs]
    return sorted(found, key=lambda spec: int(spec["metadata"].get("trial", 1000)))


async def test_a_study_on_a_server_and_once_more(house: House, tune: Run, data: Path):
    validation = data.with_name("held-out.jsonl")
    validation.write_text(LINES + LINES)
    typed = (str(data), "--name", "sql", "--validation", str(validation), "--epochs", "2")
    async with served(house.app) as url:
        with worker(house):
            status, out, err = await tune(*typed, "--trials", "5", "-j", "2", "--server", url)
            assert (status, err) == (0, "")
            again = await tune(*typed, "--trials", "5", "--server", url, "--json")
    assert "trial 0 running: rank 16, all linears, rate ×1, " in out
    assert "trial 0 complete at 1.5000: " in out
    last = out.splitlines()[-1]
    assert last.startswith("best: rank ")
    assert last.endswith("the defaults' is 1.5000; published as sql")
    made = specs(house)
    assert len(made) == 6, "five trials, and the one that publishes"
    assert len({spec["training_file"] for spec in made}) == 1
    sent = house.store.files.get(made[0]["validation_file"])
    assert sent.bytes == 2 * len(LINES)
    assert all(spec["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2 for spec in made)
    assert [spec["adapterd"]["publish"] for spec in made] == [False] * 5 + [True]
    status, out, err = again
    assert status == 0
    assert "the study sql has its 5 trials already" in err
    told = json.loads(out)
    assert (told["study"], told["adapter"], len(told["trials"])) == ("sql", "sql", 5)
    assert told["defaults"]["loss"] == 1.5
    assert told["best"]["loss"] == min(one["loss"] for one in told["trials"])
    assert told["best"]["values"]["rank"] in (4, 8, 16, 32, 64)


async def test_pruned_trials_are_cancelled_on_the_server(
    house: House, tune: Run, data: Path, monkeypatch: pytest.MonkeyPatch
):
    looks: Counter[str] = Counter()
    real = ServerJobs.look

    def counted(self: ServerJobs, job_id: str):
        looks[job_id] += 1
        return real(self, job_id)

    monkeypatch.setattr(ServerJobs, "look", counted)
    async with served(house.app) as url:
        with worker(house, eval_s=0, looks=looks):
            typed = (str(data), "--study", "s", "--no-publish", "--trials", "5", "-j", "2")
            status, out, err = await tune(*typed, "--server", url)
            book = JobBook(house.store.database, base=BASE)
            await until(lambda: all(one.finished_at for one in book.list(limit=9)[0]))
    assert (status, err) == (0, "")
    jobs, _ = book.list(limit=9)
    cancelled = {job.spec["metadata"]["trial"] for job in jobs if job.status == "cancelled"}
    assert cancelled
    for number in cancelled:
        assert f"trial {number} pruned at " in out
    assert "; not published" in out


async def test_a_server_that_restarts_ends_no_study(house: House, tune: Run, data: Path):
    with worker(house, evals=0):
        async with served(house.app) as url:
            running = tune(
                str(data), "--study", "s", "--no-publish", "--trials", "6", "--server", url
            )
            await until(lambda: len(specs(house)) > 2)
        await asyncio.sleep(0.5)
        assert not running.done()
        async with served(house.app, port=int(url.rpartition(":")[2])):
            status, out, err = await running
    assert (status, err) == (0, "")
    assert "6 trials: 6 complete" in out
    assert sorted(spec["metadata"]["trial"] for spec in specs(house)) == list("012345")


@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        ((), 2, "name the adapter with --name"),
        (("--name", "s", "--suffix", "t"), 2, "use --name"),
        (("--name", "s", "--holdout", "0"), 2, "add --validation"),
        (("--name", "s", "--threads", "2"), 2, "--threads is for --local"),
        (("--name", "s", "--local", "--server", "http://x"), 2, "--server does not go with"),
        (("--name", "s", "--server", "http://127.0.0.1:9"), 1, "no server answers"),
    ],
)
async def test_what_cannot_be_asked(
    tune: Run, data: Path, typed: tuple[str, ...], status: int, said: str
):
    ended, _, err = await tune(str(data), *typed)
    assert (ended, err.count("\n")) == (status, 1)
    assert said in err


async def test_what_the_server_would_refuse_in_the_end_is_refused_first(
    house: House, tune: Run, data: Path
):
    async with served(house.app) as url:
        typed = (str(data), "--name", "s", "--method", "ia3", "--server", url)
        status, _, err = await tune(*typed)
        bad = data.with_name("bad.jsonl")
        bad.write_text("{}\n")
        refused = await tune(str(bad), "--name", "s", "--server", url)
    assert status == 1
    assert "'ia3' trains what this server cannot serve" in err
    assert refused[0] == 1
    assert "bad.jsonl: 1 line cannot be trained on" in refused[2]
    assert specs(house) == []


def test_without_the_extra_there_is_a_line_with_the_remedy(data: Path):
    code = f"""
import sys
sys.modules["optuna"] = None
from server.cli import main
main(["tune", {str(data)!r}, "--name", "s"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    said = "adapterd: tuning needs optuna, which is not installed: pip install 'adapterd[train]'\n"
    assert done.stderr == said


def test_the_live_table_shows_each_trial_and_the_best():
    from rich.console import Console

    view = LiveTrials(4)
    console = Console(width=120, record=True, quiet=True)
    view.show(
        [
            Row(0, {RANK: 4, RATE: 1.0}, "complete", 1.5),
            Row(1, {RANK: 5, RATE: 2.0}, "complete", 1.25),
            Row(2, {RANK: 2, RATE: 0.5}, "failed", None, error="it broke"),
            Row(3, {RANK: 3, RATE: 0.5}, "running", 1.75, step=20, steps=80),
        ]
    )
    view.say("trial 1 is run again")
    with console.capture() as shown:
        console.quiet = False
        console.print(view.picture())
    text = shown.get()
    for part in ("rank 16, rate ×1 (the defaults)", "1.2500", "best", "it broke", "20/80"):
        assert part in text
    assert "3 of 4 trials, the best is 1 at 1.2500" in text
    assert "trial 1 is run again" in text


async def test_ctrl_c_leaves_a_study_that_can_be_gone_on_with(house: House, tune: Run, data: Path):
    async with served(house.app) as url:
        typed = (str(data), "--study", "s", "--no-publish", "--trials", "2", "--server", url)
        command = [*ADAPTERD, "tune", *typed]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        await until(lambda: specs(house), 60)
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
        with worker(house, evals=0, eval_s=0.2):
            again = await tune(*typed)
    assert process.returncode == 130
    assert out.decode().endswith("the study s is kept: the same command goes on with it\n")
    assert again[0] == 0
    assert "going on with trial 0" in again[1]
    assert len(specs(house)) == 2


async def test_a_server_without_workers_is_told(
    house: House, tune: Run, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.tune_jobs.UNCLAIMED_S", 0.2)
    async with served(house.app) as url:
        typed = (str(data), "--study", "s", "--no-publish", "--trials", "2", "--server", url)
        running = tune(*typed)
        await until(lambda: specs(house))
        await asyncio.sleep(0.6)
        with worker(house, evals=0, eval_s=0):
            status, out, _ = await running
    assert status == 0
    assert out.count("No worker has taken a job yet. If none is running: adapterd worker") == 1
