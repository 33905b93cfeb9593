"""Follows a server's training job until it ends, through the server's restarts.

Here: follow. Not here: how it looks (job_view.py), what is said at the end (cli_jobs.py).
"""

import time
from typing import Any

from server.http_client import ServerClient
from server.job_view import Event, Job, JobView
from server.patience import patiently

ENDED = ("succeeded", "failed", "cancelled")
FIRST_EVENTS = 20  # of a job that has a long past, the last so many are shown
POLL_S = 1.0
UNCLAIMED_S = 10.0  # in the queue, before that is said


def follow(client: ServerClient, job: Job, view: JobView) -> Job:
    """Shows the job until it has ended; as it is then.

    Raises ServerError if the server says no, or says nothing for too long.
    """
    job_id, seen = job["id"], 0
    unclaimed_at: float | None = time.monotonic() + UNCLAIMED_S  # None: never, or that was said
    while True:
        # The job first: one that has ended has all its events.
        job = patiently(view.say, client.job, job_id)
        events = patiently(view.say, _events_after, client, job_id, seen)
        view.show(job, events)
        seen = max([seen, *(_number(event) for event in events)])
        if job["status"] in ENDED:
            return job
        if job["status"] != "queued":
            unclaimed_at = None
        elif unclaimed_at is not None and time.monotonic() > unclaimed_at:
            unclaimed_at = None
            view.say("No worker has taken the job yet. If none is running: adapterd worker")
        time.sleep(POLL_S)


def _events_after(client: ServerClient, job_id: str, seen: int) -> list[Event]:
    """The oldest first."""
    found: list[Event] = []
    for event in client.job_events(job_id):
        if _number(event) <= seen or (not seen and len(found) == FIRST_EVENTS):
            break
        found.append(event)
    return found[::-1]


def _number(event: dict[str, Any]) -> int:
    return int(event["id"].rpartition("-")[2])
