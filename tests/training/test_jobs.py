"""Jobs and leases, on SQLite and on PostgreSQL: every job has one worker that counts, or none."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from adapters_store.database import Database
from adapters_store.errors import Conflict, InvalidRequest, JobNotFound
from tests.support.servers import PostgreSQL
from training.jobs import (
    MAX_FAILURES,
    JobBook,
    JobQueue,
    JobRecord,
    Lease,
    LeaseLost,
    Status,
    succeed,
)

SPEC = {"training_file": "file-1", "seed": 7}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        return server.url(server.empty_database())
    return f"sqlite:///{tmp_path / 'catalog.sqlite3'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def book(database: Database) -> JobBook:
    return JobBook(database, base="demo")


def queue(database: Database, lease_s: float = 60.0) -> JobQueue:
    return JobQueue(database, base="demo", lease_s=lease_s)


def claimed(database: Database, worker: str = "w", lease_s: float = 60.0) -> Lease:
    lease = queue(database, lease_s).claim(worker)
    assert lease is not None
    return lease


def messages(book: JobBook, job: JobRecord) -> list[str]:
    return [event.message for event in reversed(book.events(job.id, limit=100)[0])]


def test_a_job_goes_from_the_queue_through_a_worker_to_its_result(
    database: Database, book: JobBook
) -> None:
    job = book.create(SPEC)
    assert (job.status, job.spec, job.failures, job.result) == ("queued", SPEC, 0, None)
    lease = claimed(database, "w1")
    assert lease.job.id == job.id
    assert queue(database).claim("w2") is None
    queue(database).note(lease, "Step 1.", data={"loss": 0.5})
    assert queue(database).renew(lease) == ""
    with database.write() as connection:
        succeed(connection, lease, {"version": 3}, "Published.")
    done = book.get(job.id)
    assert (done.status, done.result) == ("succeeded", {"version": 3})
    assert done.started_at is not None
    assert done.finished_at is not None
    assert messages(book, job) == [
        "The job is queued.",
        "Worker w1 has taken the job.",
        "Step 1.",
        "Published.",
    ]
    assert queue(database).claim("w2") is None


def test_the_oldest_is_taken_first_and_bases_keep_apart(database: Database, book: JobBook) -> None:
    JobBook(database, base="other").create(SPEC)
    ours = [book.create({"n": n}).id for n in range(3)]
    taken = [claimed(database).job.id for _ in ours]
    assert sorted(taken) == sorted(ours)
    assert queue(database).claim("w") is None


def test_a_late_worker_can_change_nothing(database: Database, book: JobBook) -> None:
    job = book.create(SPEC)
    late = claimed(database, "late", lease_s=-1.0)  # over already
    other = claimed(database, "other")
    assert other.fence > late.fence
    jobs = queue(database)
    for act in (
        lambda: jobs.renew(late),
        lambda: jobs.note(late, "I am here"),
        lambda: jobs.fail(late, "no"),
        lambda: jobs.heed(late),
    ):
        with pytest.raises(LeaseLost):
            act()
    with database.write() as connection, pytest.raises(LeaseLost):
        succeed(connection, late, {"by": "late"}, "Published.")
    with database.write() as connection:
        succeed(connection, other, {"by": "other"}, "Published.")
    assert book.get(job.id).result == {"by": "other"}
    assert "Attempt 1 failed: its worker late was lost" in messages(book, job)
    with database.write() as connection, pytest.raises(LeaseLost):
        succeed(connection, other, {"by": "other again"}, "Published.")


def test_a_lease_that_is_renewed_in_time_is_kept(database: Database, book: JobBook) -> None:
    book.create(SPEC)
    lease = claimed(database, lease_s=-1.0)
    queue(database, lease_s=60).renew(lease)
    assert queue(database).claim("other") is None


def test_progress_is_told_until_another_worker_takes_the_job(
    database: Database, book: JobBook
) -> None:
    job = book.create(SPEC)
    lease = claimed(database)
    assert book.get(job.id).progress is None
    queue(database).renew(lease, progress={"step": 3, "loss": float("nan"), "rate": [1.5]})
    told = {"step": 3, "loss": None, "rate": [1.5]}
    assert book.get(job.id).progress == told
    queue(database).renew(lease)
    assert book.get(job.id).progress == told
    queue(database).heed(lease)
    assert book.get(job.id).progress == told
    again = claimed(database)
    assert book.get(job.id).progress is None
    with pytest.raises(LeaseLost):
        queue(database).renew(lease, progress={"step": 4})
    with database.write() as connection:
        succeed(connection, again, {"loss": float("inf")}, "Published.")
    assert book.get(job.id).result == {"loss": None}


def test_a_filter_looks_at_every_job(
    database: Database, book: JobBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.jobs.SCAN", 2)
    ids = {book.create({"n": n}).id: n for n in range(9)}

    def found(limit: int, wanted: Callable[[JobRecord], bool]) -> list[int]:
        seen: list[int] = []
        more, after = True, None
        while more:
            page, more = book.list(limit=limit, after=after, wanted=wanted)
            assert len(page) == limit or not more
            seen += [ids[job.id] for job in page]
            after = page[-1].id if page else None
        return sorted(seen)

    for limit in (1, 2, 3, 9, 20):
        assert found(limit, lambda job: job.spec["n"] % 3 == 0) == [0, 3, 6]
        assert found(limit, lambda job: True) == list(range(9))
        assert found(limit, lambda job: False) == []


def test_jobs_are_counted_by_status(database: Database, book: JobBook) -> None:
    nothing = dict.fromkeys(get_args(Status), 0)
    assert book.counts() == nothing
    for _ in range(3):
        book.create(SPEC)
    JobBook(database, base="other").create(SPEC)
    book.cancel(claimed(database).job.id)
    book.pause(book.list(limit=1, wanted=lambda job: job.status == "queued")[0][0].id)
    assert book.counts() == nothing | {"queued": 1, "running": 1, "paused": 1}


def test_three_failures_end_a_job_with_the_cause(database: Database, book: JobBook) -> None:
    job = book.create(SPEC)
    for attempt in range(1, MAX_FAILURES + 1):
        queue(database).fail(claimed(database), f"cause {attempt}")
    failed = book.get(job.id)
    assert (failed.status, failed.error, failed.failures) == ("failed", "cause 3", MAX_FAILURES)
    events = {event.message: event.level for event in book.events(job.id, limit=100)[0]}
    assert events["Attempt 2 failed: cause 2"] == "warn"
    assert events["Attempt 3 failed: cause 3"] == "error"
    assert queue(database).claim("w") is None


def test_workers_that_die_are_failures_too(database: Database, book: JobBook) -> None:
    job = book.create(SPEC)
    for _ in range(MAX_FAILURES):
        claimed(database, "mortal", lease_s=-1.0)
    assert queue(database).claim("w") is None
    assert book.get(job.id).status == "failed"
    assert book.get(job.id).error == "its worker mortal was lost"


def test_what_no_other_try_can_help_fails_at_once(database: Database, book: JobBook) -> None:
    job = book.create(SPEC)
    queue(database).fail(claimed(database), "line 3 is bad", final=True)
    assert (book.get(job.id).status, book.get(job.id).error) == ("failed", "line 3 is bad")


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_wishes_reach_a_running_job_through_its_worker(
    database: Database, book: JobBook, wish: str, status: str
) -> None:
    job = book.create(SPEC)
    lease = claimed(database)
    assert getattr(book, wish)(job.id).status == "running"
    assert queue(database).renew(lease) == wish
    queue(database).heed(lease)
    assert book.get(job.id).status == status
    assert queue(database).claim("w") is None


def test_a_wish_is_heeded_though_its_worker_died(database: Database, book: JobBook) -> None:
    job = book.create(SPEC)
    claimed(database, lease_s=-1.0)
    book.cancel(job.id)
    assert queue(database).claim("w") is None
    assert book.get(job.id).status == "cancelled"


def test_a_waiting_job_is_paused_resumed_and_cancelled_at_once(
    database: Database, book: JobBook
) -> None:
    job = book.create(SPEC)
    assert book.pause(job.id).status == "paused"
    assert queue(database).claim("w") is None
    assert book.resume(job.id).status == "queued"
    with pytest.raises(Conflict, match="is queued, not paused"):
        book.resume(job.id)
    assert book.cancel(job.id).status == "cancelled"
    for act in (book.cancel, book.pause, book.resume):
        with pytest.raises(Conflict, match="cancelled"):
            act(job.id)


def test_a_pause_that_was_not_heeded_yet_can_be_taken_back(
    database: Database, book: JobBook
) -> None:
    job = book.create(SPEC)
    lease = claimed(database)
    book.pause(job.id)
    book.resume(job.id)
    assert queue(database).renew(lease) == ""


def test_a_worker_that_ends_gives_its_job_back(database: Database, book: JobBook) -> None:
    job = book.create(SPEC)
    queue(database).heed(claimed(database, "w1"))
    assert (book.get(job.id).status, book.get(job.id).failures) == ("queued", 0)
    assert claimed(database, "w2").job.id == job.id


def test_pages_of_jobs_and_events(database: Database, book: JobBook) -> None:
    ids = [book.create({"n": n}).id for n in range(5)]
    seen: list[str] = []
    more, after = True, None
    while more:
        page, more = book.list(limit=2, after=after)
        seen += [job.id for job in page]
        after = seen[-1]
    assert sorted(seen) == sorted(ids)
    lease = claimed(database)
    for n in range(5):
        queue(database).note(lease, f"Step {n}.")
    told: list[str] = []
    more, before = True, None
    while more:
        events, more = book.events(lease.job.id, limit=3, after=before)
        told += [event.message for event in events]
        before = events[-1].id
    assert told == [
        *(f"Step {n}." for n in reversed(range(5))),
        "Worker w has taken the job.",
        "The job is queued.",
    ]


def test_no_number_of_an_event_is_too_high(book: JobBook) -> None:
    job = book.create(SPEC)
    assert len(book.events(job.id, limit=1, after=10**17)[0]) == 1


def test_what_is_not_there_is_named(book: JobBook) -> None:
    for act in (book.get, book.cancel, book.pause, book.resume):
        for gone in ("ftjob-none", "ftjob-" + "0" * 24):
            with pytest.raises(JobNotFound, match=gone):
                act(gone)
        with pytest.raises(JobNotFound):  # no text to PostgreSQL
            act("ftjob-\0")
    with pytest.raises(JobNotFound):
        book.events("ftjob-none", limit=1)
    with pytest.raises(InvalidRequest) as refused:
        book.list(limit=1, after="ftjob-none")
    assert refused.value.param == "after"


def test_jobs_of_the_same_moment_are_taken_in_order(book: JobBook, database: Database) -> None:
    made = [book.create(SPEC).id for _ in range(20)]
    taken = []
    while (lease := queue(database).claim("w")) is not None:
        taken.append(lease.job.id)
    assert taken == made
    assert [job.id for job in book.list(limit=100)[0]] == made[::-1]


def test_many_workers_at_once_take_each_job_once(url: str) -> None:
    with_jobs = Database(url)
    ids = {JobBook(with_jobs, base="demo").create({"n": n}).id for n in range(20)}
    taken: list[str] = []

    def work(name: str) -> None:
        own = Database(url)
        while lease := queue(own).claim(name):
            taken.append(lease.job.id)
        own.close()

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with_jobs.close()
    assert len(taken) == len(ids)
    assert set(taken) == ids
