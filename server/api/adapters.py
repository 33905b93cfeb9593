"""An adapter's life over HTTP: upload or load, list, show, download, prefetch, pin, delete.

Here: routes, the multipart body, the adapter object. Not here: what makes an adapter valid, where
it rests, which sources may be read. Names of parts only label them: they are no paths.
"""

import asyncio
import tempfile
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from adapters_store.catalog import AdapterRecord, VersionRecord
from adapters_store.content import AdapterContent, AdapterFacts
from adapters_store.errors import InvalidRequest
from adapters_store.store import Published, UploadedFile
from server.api.aliases import alias_object
from server.api.bodies import (
    content_type,
    read_json,
    read_optional_json,
)
from server.api.downloads import file_chunks
from server.api.forms import read_form
from server.api.loading import LoadBody, load, unload, unpin_all
from server.api.lost_files import loading
from server.api.schemas import StrictBody
from server.api.services import AnyTime, Services, WhileOpen
from server.engine.messages import SlotLevel

MAX_TTL_S = 366 * 24 * 3600  # of a pin

Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=1000)]


class PrefetchBody(StrictBody):
    """POST /v1/adapters/{name}/prefetch."""

    to: SlotLevel = "slot"


class PinBody(StrictBody):
    """POST /v1/adapters/{name}/pin."""

    ttl_seconds: Annotated[int, Field(ge=1, le=MAX_TTL_S)] | None = None  # None: until unpinned


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/adapters")
    routes.post("", response_model=None)(upload)
    routes.get("")(list_adapters)
    routes.get("/{name}")(show)
    routes.get("/{name}/versions")(versions)
    routes.get("/{name}/versions/{version}")(show_version)
    routes.delete("/{name}/versions/{version}")(delete_version)
    routes.get("/{name}/download", response_model=None)(download)
    routes.post("/{name}/prefetch")(prefetch)
    routes.post("/{name}/pin")(pin)
    routes.delete("/{name}/pin")(unpin)
    routes.delete("/{name}")(delete)
    return routes


async def upload(request: Request, services: WhileOpen) -> Response:
    """Stores a PEFT adapter's files as a version of `name`; 200 if it is there already.

    The files are parts of the body, or lie where a JSON body says.
    """
    if content_type(request) == "application/json":
        body = await read_json(request, LoadBody, max_bytes=services.limits.max_body_bytes)
        published = await load(services, body.name, body.source, body.revision)
    else:
        published = await _publish_form(request, services)
    record = await asyncio.to_thread(services.store.get, published.version.name)
    services.metrics.learn_name(published.version.digest, published.version.name)
    shown = adapter_object(services, record, published.version)
    shown["ignored_files"] = list(published.ignored_files)
    return JSONResponse(shown, status_code=201 if published.created else 200)


async def _publish_form(request: Request, services: Services) -> Published:
    base = services.base_model()
    form = await read_form(request, services.limits)
    try:
        name, files, promote = _fields(form)

        def check(content: AdapterContent) -> AdapterFacts:
            return services.check(content, base)

        async with services.bulk:
            return await asyncio.to_thread(
                services.store.publish, name, files, check=check, promote=promote
            )
    finally:
        await form.close()


def _fields(form: FormData) -> tuple[str, list[UploadedFile], bool]:
    """`name`, the parts of `file` and `files`, and `promote`."""
    names, files, promote = [], [], True
    for key, value in form.multi_items():
        if key in ("file", "files") and isinstance(value, UploadFile):
            files.append(UploadedFile(value.filename or "", value.file))
        elif key == "name" and isinstance(value, str):
            names.append(value)
        elif key == "promote":
            if value not in ("true", "false"):
                raise InvalidRequest("promote must be true or false", param="promote")
            promote = value == "true"
        elif key in ("name", "file", "files"):
            kind = "a text field" if key == "name" else "a file, with a filename"
            raise InvalidRequest(f"{key} must be {kind}", param=key)
        else:
            raise InvalidRequest(f"unknown field {key[:200]!r}: remove it", param=key)
    if len(names) != 1:
        raise InvalidRequest("name is required, once: what to call the adapter", param="name")
    if not files:
        raise InvalidRequest(
            "file is required: a .zip or .tar.gz of a PEFT folder, or its files as several 'files'",
            param="file",
        )
    return names[0], files, promote


async def list_adapters(services: AnyTime, limit: Limit = 100, after: str | None = None) -> Json:
    """By name, a page at a time."""
    records, more = await asyncio.to_thread(services.store.list, limit=limit, after=after)
    data = [adapter_object(services, record, record.current) for record in records]
    return {"object": "list", "data": data, "has_more": more}


async def show(name: str, services: AnyTime) -> Json:
    """The adapter and its current version, or the one that `name` says. Raises AdapterNotFound."""
    version = await asyncio.to_thread(services.store.show, name)
    record = await asyncio.to_thread(services.store.get, version.name)
    aliases = await asyncio.to_thread(services.store.aliases.list, version.name)
    shown = [alias_object(alias) for alias in aliases]
    return adapter_object(services, record, version) | {"aliases": shown}


async def versions(name: str, services: AnyTime) -> Json:
    """All its versions. Raises AdapterNotFound."""
    record = await asyncio.to_thread(services.store.get, name)
    found = await asyncio.to_thread(services.store.versions, name)
    data = [adapter_object(services, record, version) for version in found]
    return {"object": "list", "data": data, "has_more": False}


async def show_version(name: str, version: str, services: AnyTime) -> Json:
    """One version, by number or digest prefix, with its load report. Raises AdapterNotFound."""
    found = await asyncio.to_thread(services.store.show, f"{name}@{version}")
    record = await asyncio.to_thread(services.store.get, found.name)
    return adapter_object(services, record, found)


async def delete_version(name: str, version: str, services: WhileOpen, force: bool = False) -> Json:
    """Removes one version; running requests finish on it. Raises AdapterNotFound, VersionInUse."""
    store = services.store
    found = await asyncio.to_thread(store.show, f"{name}@{version}")
    gone = await asyncio.to_thread(store.delete_version, name, found.number, force=force)
    await unpin_all(services, [gone])
    return {
        "id": f"{name}@{found.number}",
        "object": "adapter.version.deleted",
        "digest": found.digest,
        "deleted": True,
    }


async def download(name: str, services: AnyTime) -> Response:
    """A zip that PEFT loads; `name` may say which version. Raises AdapterNotFound."""
    version = await asyncio.to_thread(services.store.show, name)
    out = await asyncio.to_thread(tempfile.TemporaryFile)
    try:
        async with services.bulk:
            await asyncio.to_thread(services.store.write_zip, version.digest, out)
        size = out.tell()
        out.seek(0)
    except BaseException:
        out.close()
        raise
    headers = {
        "content-length": str(size),
        "content-disposition": f'attachment; filename="{version.name}-{version.number}.zip"',
        "x-adapterd-adapter-version": version.digest,
    }
    return StreamingResponse(file_chunks(out), headers=headers, media_type="application/zip")


async def prefetch(name: str, request: Request, services: WhileOpen) -> Json:
    """Answers when the version that `name` says is in the tier asked for, or a nearer one.

    Raises AdapterNotFound, Unavailable if no slot can be had now, and what a failed load raises.
    """
    body = await read_optional_json(request, PrefetchBody, max_bytes=services.limits.max_body_bytes)
    record, version = await _known(services, name)
    with services.admission.place():
        async with loading(version, services.store):
            await services.engine.prefetch(version.digest, body.to)
    return adapter_object(services, record, version)


async def pin(name: str, request: Request, services: WhileOpen) -> Json:
    """As `prefetch`, to a slot that the version keeps. Raises Conflict if others would have none.

    Pinning again is no error: the time begins anew.
    """
    body = await read_optional_json(request, PinBody, max_bytes=services.limits.max_body_bytes)
    record, version = await _known(services, name)
    with services.admission.place():
        async with loading(version, services.store):
            await services.engine.pin(version.digest, body.ttl_seconds)
    return adapter_object(services, record, version)


async def unpin(name: str, services: WhileOpen) -> Json:
    """Lets the version that `name` says go when its slot is needed, pinned or not."""
    record, version = await _known(services, name)
    await services.engine.unpin(version.digest)
    return adapter_object(services, record, version)


async def _known(services: Services, name: str) -> tuple[AdapterRecord, VersionRecord]:
    """Whose version `name` says, and which. Raises AdapterNotFound."""
    version = await asyncio.to_thread(services.store.show, name)
    record = await asyncio.to_thread(services.store.get, version.name)
    services.metrics.learn_name(version.digest, version.name)
    return record, version


async def delete(name: str, services: WhileOpen, force: bool = False) -> Json:
    """Removes the adapter, and its pins; running requests finish on it.

    Raises AdapterNotFound, VersionInUse.
    """
    await unload(services, name, force=force)
    return {"id": name, "object": "adapter.deleted", "deleted": True}


def adapter_object(services: Services, record: AdapterRecord, version: VersionRecord) -> Json:
    """One version of an adapter, as every route shows it."""
    facts = version.facts
    return {
        "id": record.name,
        "object": "adapter",
        "version": version.number,
        "versions": record.versions,
        "digest": version.digest,
        "kind": facts.kind,
        "rank": facts.rank,
        "target_modules": list(facts.target_modules),
        "bytes": facts.bytes,
        "created_at": int(version.created_at),
        "base": record.base,
        "owner": record.owner,
        "residency": services.engine.stats.residency.get(version.digest, "disk"),
        "load_seconds": services.engine.stats.load_times.get(version.digest, {}),
        "pinned": version.digest in services.engine.stats.pinned,
        "report": dict(facts.report),
    }
