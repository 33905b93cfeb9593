"""Fine-tuning jobs as rows, and who may work on one: fenced leases that expire.

Here: JobBook (what clients do), JobQueue (what workers do), the records. Not here: what a job's
spec says, training, HTTP.

A worker holds a job by a lease: a number, the fence, that rises with every claim, and a time until
which it is good unless it is renewed. Whatever a worker writes is written in a transaction that
first finds the fence unchanged, so one that was stopped past its lease and wakes up changes nothing
(Kleppmann 2016, "How to do distributed locking"). Clocks only say when others may try; that no two
results are kept does not depend on them.
"""

import math
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, Select, and_, func, or_, select

from adapters_store.database import Database
from adapters_store.errors import Conflict, InvalidRequest, JobNotFound
from adapters_store.paging import by_age
from adapters_store.schema import job_events, jobs
from adapters_store.strict_json import shorten

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
Wish = Literal["", "pause", "cancel"]

ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
MAX_FAILURES = 3
"""So many, a worker's death among them, and the job has failed."""

SCAN = 200
"""Jobs that are read at a time where a filter looks at each."""

LAST_EVENT = 2**31 - 1  # the column holds no higher number, and could not be compared with one
_ID = re.compile(r"ftjob-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class JobRecord:
    id: str
    base: str
    owner: str
    spec: Mapping[str, Any]  # what was asked, checked
    status: Status
    wish: Wish  # of a running job: what its worker is to do next
    failures: int
    error: str | None  # the last cause, once it has failed
    result: Mapping[str, Any] | None
    progress: Mapping[str, Any] | None  # as its worker told it last, since it took the job
    created_at: int  # Unix seconds, as the others
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    id: int  # rises with time
    job_id: str
    level: Level
    message: str
    data: Mapping[str, Any] | None
    created_at: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's claim on a job, to show with whatever it writes."""

    job: JobRecord
    fence: int


class LeaseLost(Exception):
    """Another worker has the job, or it has ended: what this one did counts for nothing."""


class JobBook:
    """Jobs for one base, as clients see them. Methods block; call them from threads."""

    def __init__(self, database: Database, *, base: str) -> None:
        self._database = database
        self._base = base

    def create(
        self, spec: Mapping[str, Any], *, owner: str = "default", job_id: str | None = None
    ) -> JobRecord:
        """Queues a job; `job_id` is one of `new_job_id`, where the spec has to name it."""
        job_id = job_id or new_job_id()
        with self._database.write() as connection:
            connection.execute(
                jobs.insert().values(
                    id=job_id,
                    base=self._base,
                    owner=owner,
                    spec=dict(spec),
                    status="queued",
                    created_at=_now(),
                )
            )
            _note(connection, job_id, "The job is queued.")
            return _get(connection, job_id, self._base)

    def get(self, job_id: str) -> JobRecord:
        """Raises JobNotFound."""
        with self._database.read() as connection:
            return _get(connection, job_id, self._base)

    def list(
        self,
        *,
        limit: int,
        after: str | None = None,
        wanted: Callable[[JobRecord], bool] | None = None,
    ) -> tuple[tuple[JobRecord, ...], bool]:
        """Up to `limit`, the newest first, those older than the job `after`; whether more follow.

        With `wanted` those only. Raises InvalidRequest if there is no job `after`.
        """
        found: list[JobRecord] = []
        batch = limit if wanted is None else SCAN
        with self._database.read() as connection:
            last = None if after is None else self._behind(connection, after)
            while len(found) <= limit:
                query = by_age(jobs, limit=batch, behind=last).where(jobs.c.base == self._base)
                rows = [_record(row) for row in connection.execute(query)]
                found += rows if wanted is None else filter(wanted, rows)
                if len(rows) <= batch:
                    break
                last = rows[-1]
        return tuple(found[:limit]), len(found) > limit

    def _behind(self, connection: Connection, after: str) -> JobRecord:
        try:
            return _get(connection, after, self._base)
        except JobNotFound as gone:
            raise InvalidRequest(gone.message, param="after") from None

    def counts(self) -> dict[str, int]:
        """How many jobs are in each status; every one of them is there."""
        query = select(jobs.c.status, func.count()).where(jobs.c.base == self._base)
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(jobs.c.status)).all()
        return dict.fromkeys(get_args(Status), 0) | {row[0]: row[1] for row in rows}

    def events(
        self, job_id: str, *, limit: int, after: int | None = None
    ) -> tuple[tuple[JobEvent, ...], bool]:
        """Of one job, the newest first, those before the event `after`; whether more follow.

        Raises JobNotFound.
        """
        query: Select[Any] = select(job_events).where(job_events.c.job_id == job_id)
        if after is not None:
            query = query.where(job_events.c.id < min(after, LAST_EVENT))
        query = query.order_by(job_events.c.id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            _get(connection, job_id, self._base)
            found = tuple(JobEvent(**row._mapping) for row in connection.execute(query))
        return found[:limit], len(found) > limit

    def cancel(self, job_id: str) -> JobRecord:
        """Ends a job, a running one once its worker hears of it. Raises JobNotFound, Conflict."""
        return self._change(job_id, "cancel", {"queued": "cancelled", "paused": "cancelled"})

    def pause(self, job_id: str) -> JobRecord:
        """Keeps a job from going on until it is resumed. Raises JobNotFound, Conflict."""
        return self._change(job_id, "pause", {"queued": "paused", "paused": "paused"})

    def resume(self, job_id: str) -> JobRecord:
        """Puts a paused job back into the queue. Raises JobNotFound, Conflict."""
        with self._database.write() as connection:
            job = _get(connection, job_id, self._base)
            if job.status == "running" and job.wish == "pause":  # its worker has not stopped yet
                _set(connection, job_id, wish="")
            elif job.status == "paused":
                _set(connection, job_id, status="queued")
            else:
                raise Conflict(f"the job {job_id} is {job.status}, not paused")
            _note(connection, job_id, "The job goes on.")
            return _get(connection, job_id, self._base)

    def _change(self, job_id: str, wish: Wish, at_once: Mapping[Status, Status]) -> JobRecord:
        with self._database.write() as connection:
            job = _get(connection, job_id, self._base)
            if job.status in ENDED:
                raise Conflict(f"the job {job_id} is {job.status} already")
            if job.status in at_once:
                status = at_once[job.status]
                ended = _now() if status in ENDED else None
                _set(connection, job_id, status=status, finished_at=ended)
                _note(connection, job_id, f"The job is {status}.")
            else:
                _set(connection, job_id, wish=wish)
                _note(connection, job_id, f"The job's worker is asked to {wish} it.")
            return _get(connection, job_id, self._base)


class JobQueue:
    """The same jobs, as workers see them. Safe from any number of processes.

    True at every commit: a job has at most one fence that is good, and one that has ended has none.
    """

    def __init__(self, database: Database, *, base: str, lease_s: float = 60.0) -> None:
        self._database = database
        self._base = base
        self.lease_s = lease_s

    def claim(self, worker: str, *, job_id: str | None = None) -> Lease | None:
        """The oldest job that waits, or whose worker let its lease expire, if there is one.

        With `job_id` that one only.
        """
        due = self._due() if job_id is None else self._due().where(jobs.c.id == job_id)
        while True:
            with self._database.write() as connection:
                row = connection.execute(due).first()
                if row is None:
                    return None
                job = _record(row)
                if job.status == "running":
                    cause = f"its worker {row.worker} was lost"
                    if _failed(connection, job, cause) or _heeded(connection, job):
                        continue
                _set(
                    connection,
                    job.id,
                    status="running",
                    worker=worker,
                    fence=row.fence + 1,
                    lease_until=time.time() + self.lease_s,
                    started_at=job.started_at or _now(),
                    progress=None,
                )
                _note(connection, job.id, f"Worker {worker} has taken the job.")
                return Lease(_get(connection, job.id, self._base), row.fence + 1)

    def _due(self) -> Select[Any]:
        waits = jobs.c.status == "queued"
        lost = and_(jobs.c.status == "running", jobs.c.lease_until < time.time())
        query = select(jobs).where(jobs.c.base == self._base, or_(waits, lost))
        return query.order_by(jobs.c.created_at, jobs.c.id).limit(1)

    def renew(self, lease: Lease, progress: Mapping[str, Any] | None = None) -> Wish:
        """Makes the lease good for its time again, and says what is wished. Raises LeaseLost.

        `progress`: what the job's object tells from now on; None leaves that as it is.
        """
        told = {} if progress is None else {"progress": storable(progress)}
        with self._database.write() as connection:
            job = require(connection, lease)
            _set(connection, job.id, lease_until=time.time() + self.lease_s, **told)
        return job.wish

    def note(
        self,
        lease: Lease,
        message: str,
        *,
        level: Level = "info",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds to the job's events. Raises LeaseLost."""
        with self._database.write() as connection:
            require(connection, lease)
            _note(connection, lease.job.id, message, level, data)

    def heed(self, lease: Lease) -> None:
        """Lets the job go as its wish says: paused, cancelled or queued. Raises LeaseLost."""
        with self._database.write() as connection:
            job = require(connection, lease)
            if not _heeded(connection, job):
                _release(connection, job.id, "queued")
                _note(connection, job.id, "The job's worker has given it back.")

    def fail(self, lease: Lease, cause: str, *, final: bool = False) -> None:
        """Counts a failure; the last one that is allowed, or a `final` one, ends the job.

        Raises LeaseLost.
        """
        with self._database.write() as connection:
            job = require(connection, lease)
            if not _failed(connection, job, cause, final=final):
                _release(connection, job.id, "queued")


def new_job_id() -> str:
    """Ids sort by the time they were made at: jobs of the same second keep their order."""
    return f"ftjob-{time.time_ns():016x}{uuid.uuid4().hex[:8]}"


def storable(value: Any) -> Any:
    """`value` as JSON can hold it: a loss that is no finite number becomes null."""
    if isinstance(value, Mapping):
        return {key: storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [storable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def succeed(connection: Connection, lease: Lease, result: Mapping[str, Any], message: str) -> None:
    """Ends a job well, within the transaction that keeps what came of it. Raises LeaseLost."""
    job = require(connection, lease)
    _release(connection, job.id, "succeeded", result=storable(result), finished_at=_now())
    model = result.get("fine_tuned_model")
    _note(connection, job.id, message, data=None if model is None else {"model": model})


def require(connection: Connection, lease: Lease) -> JobRecord:
    """The job as it is now, if the lease's fence is still good. Raises LeaseLost."""
    query = select(jobs).where(
        jobs.c.id == lease.job.id, jobs.c.status == "running", jobs.c.fence == lease.fence
    )
    row = connection.execute(query).first()
    if row is None:
        raise LeaseLost(f"job {lease.job.id} is no longer this worker's")
    return _record(row)


def _failed(connection: Connection, job: JobRecord, cause: str, *, final: bool = False) -> bool:
    """Counts a failure of a running job; whether that has ended it."""
    failures = job.failures + 1
    over = final or failures >= MAX_FAILURES
    _set(connection, job.id, failures=failures)
    _note(connection, job.id, f"Attempt {failures} failed: {cause}", "error" if over else "warn")
    if over:
        _release(connection, job.id, "failed", error=cause, finished_at=_now())
    return over


def _heeded(connection: Connection, job: JobRecord) -> bool:
    """Does what is wished of a running job that nobody works on; whether that was anything."""
    if not job.wish:
        return False
    status: Status = "paused" if job.wish == "pause" else "cancelled"
    ended = _now() if status in ENDED else None
    _release(connection, job.id, status, finished_at=ended)
    _note(connection, job.id, f"The job is {status}.")
    return True


def _release(connection: Connection, job_id: str, status: Status, **values: Any) -> None:
    _set(connection, job_id, status=status, wish="", worker=None, lease_until=None, **values)


def _set(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(jobs.update().where(jobs.c.id == job_id).values(values))


def _note(
    connection: Connection,
    job_id: str,
    message: str,
    level: Level = "info",
    data: Mapping[str, Any] | None = None,
) -> None:
    values = {"job_id": job_id, "level": level, "message": message, "created_at": _now()}
    values["data"] = storable(data)
    connection.execute(job_events.insert().values(values))


def _get(connection: Connection, job_id: str, base: str) -> JobRecord:
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.base == base)
    # Only an id that could exist reaches the database: others may not even be text to it.
    row = connection.execute(query).first() if _ID.fullmatch(job_id) else None
    if row is None:
        raise JobNotFound(
            f"no fine-tuning job has the id {shorten(job_id)}; GET /v1/fine_tuning/jobs lists them",
            param="fine_tuning_job_id",
        )
    return _record(row)


def _record(row: Row[Any]) -> JobRecord:
    fields = JobRecord.__dataclass_fields__
    return JobRecord(**{key: value for key, value in row._mapping.items() if key in fields})


def _now() -> int:
    return int(time.time())
