"""Whether the process lives, whether it can serve, and its metrics. Never refused by draining."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.api.services import AnyTime


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter()
    routes.get("/health/live")(live)
    routes.get("/health/ready")(ready)
    routes.get("/health")(ready)
    routes.get("/metrics", response_model=None)(metrics)
    return routes


async def live() -> dict[str, str]:
    """The process is up and its event loop turns."""
    return {"status": "ok"}


async def ready(services: AnyTime) -> dict[str, str]:
    """Requests can be served now, for any adapter.

    Raises Draining, EngineUnavailable, Unavailable (the catalog or the store, whichever is away;
    adapters at hand are served all the same).
    """
    services.admission.check_open()
    services.require_engine()
    await services.reachability.check()
    return {"status": "ok"}


async def metrics(services: AnyTime) -> Response:
    """Prometheus' text format."""
    services.metrics.set_training_jobs(await services.job_counts.latest())
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)
