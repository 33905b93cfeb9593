"""A tuner's view of jobs, wherever they are: made once, followed, cancelled.

Here: TrialJobs and TrialJob, LocalJobs over a store's own queue. Not here: jobs behind HTTP
(server/tune_jobs.py), which trial comes next (tuner.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from adapters_store.store import AdapterStore
from training.jobs import JobBook, JobEvent, JobRecord, Status, new_job_id
from training.publishable import require_publishable
from training.spec import JobRequest

Body = Mapping[str, Any]
LOST: tuple[Status, ...] = ("failed", "cancelled")


@dataclass(frozen=True, slots=True)
class TrialJob:
    """A job as it is now."""

    id: str
    status: Status
    error: str | None
    step: int  # optimizer steps done; 0: none is known of
    steps: int
    losses: tuple[float | None, ...]  # held out, at each evaluation so far; None: no number
    report: Mapping[str, Any] | None  # once it has succeeded

    @property
    def loss(self) -> float | None:
        """What the whole run came to, on the held-out examples."""
        return None if self.report is None else self.report["scores"]["new"]["eval_loss"]


class TrialJobs(Protocol):
    """Whoever has jobs. Methods block, through short outages; they raise AdapterdError or, of a
    server, its own error."""

    def ensure(self, body: Body, *, again: bool = False) -> str:
        """The id of the job with this body's metadata, made of the body if there is none.

        `again`: one that failed or was cancelled does not count.
        """
        ...

    def look(self, job_id: str) -> TrialJob: ...

    def cancel(self, job_id: str) -> None:
        """No error if it has ended already."""
        ...

    def tend(self, idle_s: float) -> str | None:
        """Called between two looks: whoever works on the jobs may need some care.

        `idle_s`: for so long no job has had a worker. What is returned is told to the user.
        """
        ...


@dataclass(slots=True)
class Losses:
    """Gathers held-out losses from events, each once, however often a run was gone on with."""

    seen: int = 0  # the last event's number
    by_step: dict[int, float | None] = field(default_factory=dict)

    def take(self, number: int, data: Mapping[str, Any] | None) -> None:
        """Of one event; the events in any order."""
        self.seen = max(self.seen, number)
        if data is not None and "valid_loss" in data:
            self.by_step[data["step"]] = data["valid_loss"]

    def in_order(self) -> tuple[float | None, ...]:
        return tuple(self.by_step[step] for step in sorted(self.by_step))


class LocalJobs:
    """The jobs of a store on this machine."""

    def __init__(self, store: AdapterStore, *, base: str) -> None:
        self._store = store
        self._book = JobBook(store.database, base=base)
        self._losses: dict[str, Losses] = {}

    def ensure(self, body: Body, *, again: bool = False) -> str:
        """Raises InvalidRequest, UnsupportedParameter, NameReserved, pydantic's ValidationError."""
        wanted = body["metadata"]

        def is_it(job: JobRecord) -> bool:
            counts = not (again and job.status in LOST)
            return counts and wanted.items() <= (job.spec.get("metadata") or {}).items()

        known, _ = self._book.list(limit=1, wanted=is_it)
        if known:
            return known[0].id
        asked = JobRequest.model_validate(dict(body))
        require_publishable(asked.adapterd)
        assert asked.seed is not None and asked.adapterd.name is not None
        self._store.check_name(asked.adapterd.name)
        spec = asked.model_dump(mode="json", exclude_none=True)
        return self._book.create(spec, job_id=new_job_id()).id

    def look(self, job_id: str) -> TrialJob:
        job = self._book.get(job_id)  # first: one that has ended has all its events
        losses = self._losses.setdefault(job_id, Losses())
        for event in self._new_events(job_id, losses.seen):
            losses.take(event.id, event.data)
        told = job.progress or {}
        return TrialJob(
            id=job.id,
            status=job.status,
            error=job.error,
            step=told.get("step") or 0,
            steps=told.get("steps") or 0,
            losses=losses.in_order(),
            report=(job.result or {}).get("report"),
        )

    def _new_events(self, job_id: str, seen: int) -> Sequence[JobEvent]:
        found: list[JobEvent] = []
        while True:
            after = found[-1].id if found else None
            page, more = self._book.events(job_id, limit=100, after=after)
            found += [event for event in page if event.id > seen]
            if not more or not page or page[-1].id <= seen:
                return found

    def cancel(self, job_id: str) -> None:
        if self._book.get(job_id).status not in (*LOST, "succeeded"):
            self._book.cancel(job_id)

    def tend(self, idle_s: float) -> str | None:
        """Nothing: workers are others' business."""
