"""Fine-tuning jobs, as the `openai` client starts, watches and steers them.

Here: routes. Not here: what a body must say (training/spec.py, fine_tuning_request.py), what a
reply looks like (fine_tuning_format.py), the queue (training/jobs.py), training.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from adapters_store.errors import Conflict, InvalidRequest, NotFound
from adapters_store.strict_json import shorten
from server.api.bodies import read_json
from server.api.files import page
from server.api.fine_tuning_format import EVENT, checkpoint_object, event_object, job_object
from server.api.fine_tuning_request import Place, settled
from server.api.services import AnyTime, Services, WhileOpen
from training.jobs import JobRecord, new_job_id
from training.spec import JobRequest

Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=100)]

_EVENT = re.compile(rf"{EVENT}([0-9]{{1,18}})")
_FILTER = re.compile(r"metadata\[(.+)\]", re.DOTALL)


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs")
    routes.post("")(create)
    routes.get("")(list_jobs)
    routes.get("/{job_id}")(show)
    routes.get("/{job_id}/events")(events)
    routes.get("/{job_id}/checkpoints")(checkpoints)
    routes.get("/{job_id}/report")(report)
    routes.post("/{job_id}/cancel")(cancel)
    routes.post("/{job_id}/pause")(pause)
    routes.post("/{job_id}/resume")(resume)
    return routes


async def create(request: Request, services: WhileOpen) -> Json:
    """Queues a job for the workers.

    Raises ModelNotFound, NameReserved, and InvalidRequest or UnsupportedParameter naming the field.
    """
    asked = await read_json(request, JobRequest, max_bytes=services.limits.max_body_bytes)
    return job_object(await asyncio.to_thread(_create, services, asked))


def _create(services: Services, asked: JobRequest) -> JobRecord:
    job_id = new_job_id()
    place = Place(services.store, services.base_name, services.text.has_chat_template)
    return services.jobs.create(settled(place, asked, job_id), job_id=job_id)


async def list_jobs(
    request: Request, services: AnyTime, limit: Limit = 20, after: str | None = None
) -> Json:
    """The newest first, a page at a time; with `metadata[key]=value` those only that say so."""
    records, more = await asyncio.to_thread(
        services.jobs.list, limit=limit, after=after, wanted=_filter(request)
    )
    return page([job_object(record) for record in records], more)


def _filter(request: Request) -> Callable[[JobRecord], bool] | None:
    """What the query asks of a job's metadata. Raises InvalidRequest."""
    asked = [(key, one) for key, one in request.query_params.multi_items() if key[:8] == "metadata"]
    if not asked:
        return None
    if asked == [("metadata", "null")]:
        return lambda job: job.spec.get("metadata") is None
    wanted: dict[str, str] = {}
    for key, value in asked:
        named = _FILTER.fullmatch(key)
        if named is None or named[1] in wanted:
            raise InvalidRequest(
                f"{shorten(key)}: filter with metadata[key]=value, each key once, or with "
                "metadata=null alone",
                param=key,
            )
        wanted[named[1]] = value
    return lambda job: wanted.items() <= (job.spec.get("metadata") or {}).items()


async def show(job_id: str, services: AnyTime) -> Json:
    """Raises JobNotFound."""
    return job_object(await asyncio.to_thread(services.jobs.get, job_id))


async def events(
    job_id: str, services: AnyTime, limit: Limit = 20, after: str | None = None
) -> Json:
    """The newest first, a page at a time. Raises JobNotFound, InvalidRequest."""
    number = None
    if after is not None:
        named = _EVENT.fullmatch(after)
        if named is None:
            raise InvalidRequest(f"{shorten(after)} is no event's id", param="after")
        number = int(named[1])
    found, more = await asyncio.to_thread(services.jobs.events, job_id, limit=limit, after=number)
    return page([event_object(event) for event in found], more)


async def checkpoints(
    job_id: str, services: AnyTime, limit: Limit = 10, after: str | None = None
) -> Json:
    """The latest step first, a page at a time. Raises JobNotFound, InvalidRequest."""
    await asyncio.to_thread(services.jobs.get, job_id)
    found, more = await asyncio.to_thread(
        services.checkpoints.list, job_id, limit=limit, after=after
    )
    return page([checkpoint_object(record) for record in found], more)


async def report(job_id: str, services: AnyTime) -> Json:
    """What the worker found out about what it trained. Raises JobNotFound, Conflict, NotFound."""
    job = await asyncio.to_thread(services.jobs.get, job_id)
    if job.status != "succeeded":
        raise Conflict(f"the job {job_id} is {job.status}; there is a report once it has succeeded")
    found = (job.result or {}).get("report")
    if found is None:
        raise NotFound(f"the job {job_id} has no report")
    return found


async def cancel(job_id: str, services: WhileOpen) -> Json:
    """Ends a job, a running one once its worker hears of it. Raises JobNotFound, Conflict."""
    return job_object(await asyncio.to_thread(services.jobs.cancel, job_id))


async def pause(job_id: str, services: WhileOpen) -> Json:
    """Keeps a job from going on until it is resumed. Raises JobNotFound, Conflict."""
    return job_object(await asyncio.to_thread(services.jobs.pause, job_id))


async def resume(job_id: str, services: WhileOpen) -> Json:
    """Puts a paused job back into the queue. Raises JobNotFound, Conflict."""
    return job_object(await asyncio.to_thread(services.jobs.resume, job_id))
