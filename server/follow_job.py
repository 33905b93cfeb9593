"""Follows a server's training job until it ends, through the server's restarts.

Here: follow. Not here: how it looks (job_view.py), what is said at the end (cli_jobs.py).
"""

import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from server.http_client import ServerClient, ServerError
from server.job_view import Event, Job, JobView

ENDED = ("succeeded", "failed", "cancelled")
FIRST_EVENTS = 20  # of a job that has a long past, the last so many are shown
POLL_S = 1.0
UNCLAIMED_S = 10.0  # in the queue, before that is said
OUTAGE_S = 120.0  # without an answer, before it is an error
Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")


def follow(client: ServerClient, job: Job, view: JobView) -> Job:
    """Shows the job until it has ended; as it is then.

    Raises ServerError if the server says no, or says nothing for too long.
    """
    job_id, seen = job["id"], 0
    unclaimed_at: float | None = time.monotonic() + UNCLAIMED_S  # None: never, or that was said
    while True:
        # The job first: one that has ended has all its events.
        job = _patiently(view, client.job, job_id)
        events = _patiently(view, _events_after, client, job_id, seen)
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


def _patiently(
    view: JobView,
    ask: Callable[Arguments, Answer],
    *given: Arguments.args,
    **named: Arguments.kwargs,
) -> Answer:
    """The answer, asked for again while the server is away: its restart ends no job."""
    silent_since: float | None = None
    while True:
        try:
            return ask(*given, **named)
        except ServerError as error:
            if error.status is not None and error.status < 500:
                raise
            if silent_since is None:
                silent_since = time.monotonic()
                view.say(f"{error.message} Asking again…")
            elif time.monotonic() - silent_since > OUTAGE_S:
                raise
        time.sleep(POLL_S)
