"""Adapters that a client names rather than uploads: one way in for every dialect's load call.

Here: LoadBody, load, load_as. Not here: which sources may be read (adapters_store/sources.py),
routes, replies.
"""

import asyncio
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel
from adapters_store.errors import Conflict
from adapters_store.store import Published
from server.api.schemas import StrictBody
from server.api.services import Services

ORIGIN = "source"  # in a version's report: where its files came from

SourceField = Annotated[str, Field(min_length=1, max_length=4096)]


class LoadBody(StrictBody):
    """POST /v1/adapters as JSON."""

    name: str
    source: SourceField
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None


async def load(
    services: Services, name: str, source: str, revision: str | None = None, *, new: bool = False
) -> Published:
    """Publishes the adapter at `source` under `name`; with `new`, only if the name is not there.

    Raises what Sources.opened, AdapterStore.publish and Services.base_model do.
    """
    base = services.base_model()
    async with services.bulk:
        return await asyncio.to_thread(_publish, services, base, name, source, revision, new)


async def load_as(services: Services, name: str, source: str, *, in_place: bool) -> None:
    """Makes `name` mean what is at `source`, as the peers' load calls do.

    Raises what `load` does; AlreadyLoaded for a name that is there unless `in_place`; Conflict if
    the name goes on to mean another version, since content it had before becomes no new one.
    """
    published = await load(services, name, source, new=not in_place)
    services.metrics.learn_name(published.version.digest, name)
    record = await asyncio.to_thread(services.store.get, name)
    if record.current.digest != published.version.digest:
        raise Conflict(
            f"this content is version {published.version.number} of {name}, which means version "
            f"{record.current.number} now; name it {name}@{published.version.number}, or unload "
            f"{name} first",
            param="source",
        )


def _publish(
    services: Services, base: BaseModel, name: str, source: str, revision: str | None, new: bool
) -> Published:
    services.store.check_name(name, new=new)  # before a hub is asked
    with services.sources.opened(source, revision) as opened:

        def check(content: AdapterContent) -> AdapterFacts:
            facts = services.check(content, base)
            return replace(facts, report={**facts.report, ORIGIN: dict(opened.origin)})

        return services.store.publish(name, opened.files, check=check, new=new)
