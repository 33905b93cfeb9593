"""POST /v1/fine_tuning/advise: queues a job that says how to adapt the base to a file.

Here: that route. Not here: what a body may say (training/advisor/request.py), the job's object
(fine_tuning_format.py), its life: it is watched, cancelled and read as any fine-tuning job.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from server.api.bodies import read_json
from server.api.fine_tuning_format import job_object
from server.api.fine_tuning_request import Place, require_base, require_file
from server.api.services import Services, WhileOpen
from training.advisor.request import AdviceRequest
from training.jobs import JobRecord


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/fine_tuning")
    routes.post("/advise")(advise)
    return routes


async def advise(request: Request, services: WhileOpen) -> dict[str, Any]:
    """Raises ModelNotFound, and InvalidRequest naming the field."""
    asked = await read_json(request, AdviceRequest, max_bytes=services.limits.max_body_bytes)
    return job_object(await asyncio.to_thread(_create, services, asked))


def _create(services: Services, asked: AdviceRequest) -> JobRecord:
    place = Place(services.store, services.base_name, services.text.has_chat_template)
    require_base(place, asked.model)
    require_file(place, "training_file", asked.training_file, "supervised")
    return services.jobs.create(asked.model_dump(mode="json", exclude_none=True))
