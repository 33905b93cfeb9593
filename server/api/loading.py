"""Adapters that a client names rather than uploads: one way in for every dialect's load call.

Here: LoadBody, load, load_as, unload. Not here: which sources may be read
(adapters_store/sources.py), routes, replies.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from adapters_store.aliases import CURRENT_TAG, Target
from adapters_store.catalog import VersionRecord
from adapters_store.content import AdapterContent, AdapterFacts, BaseModel
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


async def load_as(services: Services, name: str, source: str, *, in_place: bool) -> VersionRecord:
    """Makes `name` mean what is at `source`, as the peers' load calls do.

    Content that the name had before becomes no new version: the name is moved back to it. Raises
    what `load` does, and AlreadyLoaded for a name that is there unless `in_place`.
    """
    version = (await load(services, name, source, new=not in_place)).version
    services.metrics.learn_name(version.digest, name)
    await asyncio.to_thread(services.store.aliases.move, name, CURRENT_TAG, Target(version.number))
    return version


async def unload(services: Services, name: str, *, force: bool = False) -> None:
    """Deletes an adapter and its pins; running requests finish on it.

    Raises AdapterNotFound, VersionInUse.
    """
    gone = await asyncio.to_thread(services.store.versions, name)
    await asyncio.to_thread(services.store.delete, name, force=force)
    await unpin_all(services, gone)


async def unpin_all(services: Services, gone: Sequence[VersionRecord]) -> None:
    """Gives back the slots of versions that are deleted."""
    for version in gone:
        if version.digest in services.engine.stats.pinned:
            await services.engine.unpin(version.digest)


def _publish(
    services: Services, base: BaseModel, name: str, source: str, revision: str | None, new: bool
) -> Published:
    services.store.check_name(name, new=new)  # before a hub is asked
    with services.sources.opened(source, revision) as opened:

        def check(content: AdapterContent) -> AdapterFacts:
            facts = services.check(content, base)
            return replace(facts, report={**facts.report, ORIGIN: dict(opened.origin)})

        return services.store.publish(name, opened.files, check=check, new=new)
