"""A study's jobs on a server: made once each, followed and cancelled over HTTP, through restarts.

Here: ServerJobs. Not here: what comes of them (training/tune/), how it looks.
"""

from typing import Any

from server.http_client import ServerClient, ServerError
from server.patience import patiently
from training.tune.jobs import LOST, Body, Losses, TrialJob

UNCLAIMED_S = 10.0  # in the queue, before that is said


class ServerJobs:
    """TrialJobs of one server. Raises ServerError for what it refuses."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self._losses: dict[str, Losses] = {}
        self._reports: dict[str, dict[str, Any]] = {}
        self._said = False

    def ensure(self, body: Body, *, again: bool = False) -> str:
        """Looked for anew at every attempt: an answer that was lost may have been a yes."""
        return patiently(_in_silence, self._ensure, body, again=again)

    def _ensure(self, body: Body, *, again: bool) -> str:
        for job in self._client.jobs(metadata=body["metadata"]):
            if not (again and job["status"] in LOST):
                return job["id"]
        return self._client.create_job(dict(body))["id"]

    def look(self, job_id: str) -> TrialJob:
        return patiently(_in_silence, self._look, job_id)

    def _look(self, job_id: str) -> TrialJob:
        job = self._client.job(job_id)  # first: one that has ended has all its events
        losses = self._losses.setdefault(job_id, Losses())
        for number, data in self._new_events(job_id, losses.seen):
            losses.take(number, data)
        if job["status"] == "succeeded" and job_id not in self._reports:
            self._reports[job_id] = self._client.job_report(job_id)
        told = job["progress"] or {}
        return TrialJob(
            id=job_id,
            status=job["status"],
            error=(job["error"] or {}).get("message"),
            step=told.get("step") or 0,
            steps=told.get("steps") or 0,
            losses=losses.in_order(),
            report=self._reports.get(job_id),
        )

    def _new_events(self, job_id: str, seen: int) -> list[tuple[int, Any]]:
        """All of them, or none: the server may go away between two pages."""
        found: list[tuple[int, Any]] = []
        for event in self._client.job_events(job_id):
            number = int(event["id"].rpartition("-")[2])
            if number <= seen:
                break
            found.append((number, event["data"]))
        return found

    def cancel(self, job_id: str) -> None:
        patiently(_in_silence, self._cancel, job_id)

    def _cancel(self, job_id: str) -> None:
        try:
            self._client.change_job(job_id, "cancel")
        except ServerError:
            if self._client.job(job_id)["status"] not in (*LOST, "succeeded"):
                raise

    def tend(self, idle_s: float) -> str | None:
        """Workers are others' business; that there are none is said once."""
        if idle_s < UNCLAIMED_S or self._said:
            return None
        self._said = True
        return "No worker has taken a job yet. If none is running: adapterd worker"


def _in_silence(_message: str) -> None:
    """A study's picture has no line for it."""
