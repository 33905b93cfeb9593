"""Studies over a real queue: resumed after kill -9, pruned, published once."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters_store.errors import Conflict, InvalidRequest
from adapters_store.store import AdapterStore
from tests.e2e.server_process import ROOT
from tests.support.scripted_worker import ScriptedWorker, smooth
from tests.support.servers import PostgreSQL
from tests.training.tune.driver import BASE, FILES, REQUEST, Silent, asked, storage, tune
from training.jobs import JobBook, JobRecord
from training.tune.jobs import LocalJobs, TrialJob
from training.tune.search_space import RANK, RATE
from training.tune.study import Asked, open_study
from training.tune.tuner import Search, Tuner

TRIALS = 9


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tune.tuner.POLL_S", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    opened = AdapterStore(tmp_path, base_name=BASE)
    yield opened
    opened.close()


def worker(store: AdapterStore, **options) -> ScriptedWorker:
    return ScriptedWorker(store.database, base=BASE, **{"loss": smooth, **options})


class CountedJobs(LocalJobs):
    def __init__(self, store: AdapterStore, *, base: str) -> None:
        super().__init__(store, base=base)
        self.looks: Counter[str] = Counter()

    def look(self, job_id: str) -> TrialJob:
        self.looks[job_id] += 1
        return super().look(job_id)


def jobs_of(store: AdapterStore) -> list[JobRecord]:
    """By their trials, what publishes last: within a second their age has no order."""
    return sorted(JobBook(store.database, base=BASE).list(limit=100)[0], key=trial_of)


def trial_of(job: JobRecord) -> int:
    return int(job.spec["metadata"].get("trial", 1000))


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_study_that_is_killed_again_and_again_is_the_one_that_never_was(
    store: AdapterStore, tmp_path: Path
):
    apart = tmp_path / "apart"
    with worker(store, evals=0, eval_s=0):  # no losses on the way: how far one gets is chance
        undisturbed = tune(store, storage(tmp_path), TRIALS)
    other = AdapterStore(apart, base_name=BASE)
    command = [sys.executable, "-m", "tests.training.tune.driver", str(apart), str(TRIALS)]
    kills = 0
    with worker(other, evals=0) as working:
        for enough in (1, 5):
            driver = subprocess.Popen(command, cwd=ROOT)
            until(lambda: len(jobs_of(other)) >= enough or driver.poll() is not None)  # noqa: B023
            if driver.poll() is None:
                driver.send_signal(signal.SIGKILL)
                kills += 1
            assert driver.wait(10) in (-signal.SIGKILL, 0)
        assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0
        resumed = tune(other, storage(apart), TRIALS)  # which has nothing left to do
        jobs = jobs_of(other)
    assert kills == 2
    assert [(row.params, row.state, row.loss) for row in resumed] == [
        (row.params, row.state, row.loss) for row in undisturbed
    ]
    trials = sorted(int(job.spec["metadata"]["trial"]) for job in jobs)
    assert trials == list(range(TRIALS))
    assert set(working.claims.values()) == {1}, "no job was begun twice"
    assert len({tuple(row.params.items()) for row in resumed}) == TRIALS, "none was drawn twice"
    other.close()


def test_the_defaults_come_first_and_tpe_beats_them(store: AdapterStore, tmp_path: Path):
    with worker(store, evals=0, eval_s=0):
        rows = tune(store, storage(tmp_path), 20)
    assert (rows[0].params[RANK], rows[0].params[RATE]) == (4, 1.0)
    assert rows[0].loss == 1.5
    first = jobs_of(store)[0].spec
    assert "rank" not in first["adapterd"].get("peft", {})
    losses = [row.loss for row in rows if row.loss is not None]
    assert min(losses) < 1.3


def test_unpromising_trials_are_cancelled_and_the_defaults_never(
    store: AdapterStore, tmp_path: Path
):
    def bad_defaults(spec) -> float:
        return 5.0 if spec["metadata"]["trial"] == "0" else smooth(spec)

    jobs = CountedJobs(store, base=BASE)
    with worker(store, loss=bad_defaults, eval_s=0, looks=jobs.looks) as working:
        rows = tune(store, storage(tmp_path), 8, parallel=2, jobs=jobs)
        until(lambda: all(job.finished_at for job in jobs_of(store)))
    states = {job.spec["metadata"]["trial"]: job.status for job in jobs_of(store)}
    pruned = [row for row in rows if row.state == "pruned"]
    assert pruned and len(pruned) == len([row for row in rows if row.state != "complete"])
    assert {states[str(row.number)] for row in pruned} == {"cancelled"}
    assert rows[0].state == "complete"
    assert rows[0].loss == 5.0
    assert len(working.claims) <= 8
    assert set(working.heeded) <= {job.id for job in jobs_of(store) if job.status == "cancelled"}


def test_what_a_killed_tuner_left_half_done_is_gone_on_with(store: AdapterStore, tmp_path: Path):
    url = storage(tmp_path)
    book = JobBook(store.database, base=BASE)
    with open_study(url, "sql", asked()) as study:
        made = Tuner(study, LocalJobs(store, base=BASE), Search(REQUEST | FILES, 4, 3), Silent())
        made._adopt()
        made._begin()  # its job is made…
        study.ask()  # …this one has no values, and no job
        made._begin()
        doomed = next(trial for trial in made._running.values() if trial.number == 2)
        doomed.set_user_attr("pruned", True)  # was given up, and its job cancelled, but not told
        book.cancel(doomed.user_attrs["job"])
    with worker(store, evals=0):
        rows = tune(store, url, 4, parallel=3)
    assert [row.state for row in rows] == ["complete", "complete", "pruned", "complete"]
    assert len(jobs_of(store)) == 4


def test_the_best_is_published_once(store: AdapterStore, tmp_path: Path):
    said: list[str] = []

    class Told(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    reports = []
    with worker(store, evals=0, eval_s=0):
        for trials in (5, 5, 6):
            with open_study(storage(tmp_path), "sql", asked()) as study:
                jobs = LocalJobs(store, base=BASE)
                made = Tuner(study, jobs, Search(REQUEST | FILES, trials, 1), Told())
                assert made.is_finished() == (len(reports) == 1)
                made.run()
                reports.append(made.publish())
                best = made.best()
                assert best is not None
    published = [job for job in jobs_of(store) if job.spec["adapterd"]["publish"]]
    assert reports[0] == reports[1]
    assert len(published) == len({report.id for report in reports}) == len(said)
    spec = published[-1].spec
    assert spec["metadata"]["publishes"] == str(best.number)
    assert spec["adapterd"]["gate"] == {"metric": "eval_loss", "better_than": "current"}
    trial = next(
        job.spec for job in jobs_of(store) if job.spec["metadata"].get("trial") == str(best.number)
    )
    assert (spec["seed"], spec.get("method")) == (trial["seed"], trial.get("method"))
    assert spec["adapterd"].get("peft") == trial["adapterd"].get("peft")


def test_failures_are_told_and_a_hopeless_study_ends(store: AdapterStore, tmp_path: Path):
    with worker(store, loss=lambda spec: None), pytest.raises(InvalidRequest) as told:
        tune(store, storage(tmp_path), 10)
    assert "3 trials failed: failed: it cannot be trained" in told.value.message
    assert len(jobs_of(store)) == 3


def test_some_failures_end_nothing(store: AdapterStore, tmp_path: Path):
    def some(spec) -> float | None:
        return None if spec["metadata"]["trial"] in ("1", "2", "3") else smooth(spec)

    with worker(store, loss=some, evals=0):
        rows = tune(store, storage(tmp_path), 5)
    assert [row.state for row in rows] == ["complete", "failed", "failed", "failed", "complete"]
    assert rows[1].error == "failed: it cannot be trained"


def test_a_study_has_one_tuner_at_a_time(tmp_path: Path):
    url = storage(tmp_path)
    with open_study(url, "sql", asked()):
        with pytest.raises(Conflict, match="has another tuner"), open_study(url, "sql", asked()):
            pass
        with open_study(url, "other", asked()):
            pass
    with open_study(url, "sql", asked()):
        pass


@pytest.mark.parametrize("url", ["sqlite", "postgresql"])
def test_a_study_is_about_one_thing(url: str, tmp_path: Path, request: pytest.FixtureRequest):
    if url == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.url(server.empty_database())
        AdapterStore(tmp_path, base_name=BASE, catalog=url).close()  # whose tables are there, too
    else:
        url = storage(tmp_path)
    with open_study(url, "sql", asked()) as study:
        made = study.user_attrs["identity"]
    for other, said in (
        (Asked("other", REQUEST, {"training_file": "0"}), "of the base tiny"),
        (Asked(BASE, REQUEST | {"seed": 4}, {"training_file": "0"}), "of other options"),
        (Asked(BASE, REQUEST, {"training_file": "1"}), "of other data"),
    ):
        with pytest.raises(Conflict, match=said), open_study(url, "sql", other):
            pass
    with open_study(url, "sql", asked()) as study:
        assert study.user_attrs["identity"] == made
        with pytest.raises(Conflict, match="another tuner"), open_study(url, "sql", asked()):
            pass
    with pytest.raises(InvalidRequest, match="no name of a study"), open_study(url, "A B", asked()):
        pass
