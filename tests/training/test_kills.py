"""Workers that die or freeze: the job goes on elsewhere, ends with the same bits, and only once."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import func, select

from adapters_store.schema import checkpoints
from tests.training.house import House, house
from training.jobs import ENDED

KILLS = 20
LEASE_S = 1.0
ROOT = Path(__file__).parents[2]
JOB = {"max_steps": 200, "checkpoint_every": 2, "evals": 4, "peft": {"rank": 4, "dropout": 0.1}}


class Driver:
    """Forks workers on a data folder."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.training.worker_driver", str(folder), str(LEASE_S)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                text=True,
            )
        self._workers: list[int] = []

    def start(self) -> int:
        """A worker's process id."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\n")
        stdin.flush()
        self._workers.append(int(stdout.readline()))
        return self._workers[-1]

    def close(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "data", lease_s=LEASE_S) as opened:
        yield opened


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    started = Driver(tmp_path / "data", tmp_path / "workers.log")
    yield started
    started.close()


def alive(worker: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(worker, 0)
        return True
    return False


def wait_for(what: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def last_step(home: House, job_id: str) -> int:
    """Of the job's newest checkpoint; 0: it has none."""
    query = select(func.max(checkpoints.c.step)).where(checkpoints.c.job_id == job_id)
    with home.store.database.read() as connection:
        return connection.execute(query).scalar() or 0


@pytest.mark.slow
def test_a_job_whose_workers_are_killed_ends_with_the_same_digest(
    home: House, driver: Driver
) -> None:
    chance, kills, steps = random.Random(6), 0, []
    job_id = home.job(name="killed", **JOB)
    while kills < KILLS:
        worker, before = driver.start(), last_step(home, job_id)
        if kills % 4 == 3:  # wherever it is by then: starting, loading, taking up a checkpoint
            time.sleep(chance.uniform(0.0, 2.0))
        else:
            wait_for(lambda before=before: last_step(home, job_id) > before)
            time.sleep(chance.uniform(0.0, 0.3))
        os.kill(worker, signal.SIGKILL)
        kills += 1
        steps.append(last_step(home, job_id))
        assert home.book.get(job_id).status not in ENDED, f"over after {kills} kills: {steps}"
    driver.start()
    wait_for(lambda: home.book.get(job_id).status in ENDED)
    assert home.book.get(job_id).status == "succeeded", home.told(job_id)
    assert home.told(job_id).count("was lost") >= KILLS // 2
    straight = home.done(name="straight", **JOB)
    assert straight.status == "succeeded"
    assert home.store.resolve("killed").digest == home.store.resolve("straight").digest
    assert len(home.store.versions("killed")) == 1


def test_a_worker_that_freezes_past_its_lease_publishes_nothing(
    home: House, driver: Driver
) -> None:
    job_id = home.job(max_steps=60, checkpoint_every=2)
    frozen = driver.start()
    wait_for(lambda: last_step(home, job_id) > 0)
    os.kill(frozen, signal.SIGSTOP)
    driver.start()
    wait_for(lambda: home.book.get(job_id).status in ENDED)
    finished = home.book.get(job_id)
    assert finished.status == "succeeded", home.told(job_id)
    told = home.told(job_id)
    os.kill(frozen, signal.SIGCONT)
    wait_for(lambda: not alive(frozen))
    assert home.book.get(job_id) == finished
    assert home.told(job_id) == told
    assert len(home.store.versions("yo")) == 1
    assert f"{job_id} is no longer this worker's: nothing of this" in driver.log.read_text()
