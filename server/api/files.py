"""Uploaded files, as the `openai` client keeps them: upload, list, show, download, delete.

Here: routes, the multipart body, the file object. Not here: where files rest
(adapters_store/files.py), what makes training data sound (training/dataset.py).
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response, StreamingResponse

from adapters_store.errors import InvalidRequest, UnsupportedParameter
from adapters_store.files import FileRecord
from server.api.downloads import file_chunks
from server.api.errors import told_as
from server.api.forms import read_form
from server.api.services import AnyTime, Services, WhileOpen
from training.uploads import PURPOSE, keep_examples

Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=10_000)]


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/files")
    routes.post("")(upload)
    routes.get("")(list_files)
    routes.get("/{file_id}")(show)
    routes.get("/{file_id}/content", response_model=None)(download)
    routes.delete("/{file_id}")(delete)
    return routes


async def upload(request: Request, services: WhileOpen) -> Json:
    """Keeps a JSONL file of training data, once each of its lines has been found sound.

    Raises InvalidDataset, which numbers the lines at fault, InvalidRequest, TooLarge, Unavailable.
    """
    form = await read_form(request, services.limits)
    try:
        file = _fields(form)
        async with services.bulk:
            record = await asyncio.to_thread(_keep, services, file)
    finally:
        await form.close()
    return file_object(record)


def _keep(services: Services, file: UploadFile) -> FileRecord:
    with told_as({"training_file": "file"}):
        return keep_examples(services.store.files, file.file, file.filename or "")


def _fields(form: FormData) -> UploadFile:
    """The file, with `purpose` found to be the one there is."""
    files: list[UploadFile] = []
    purposes: list[str] = []
    for key, value in form.multi_items():
        if key == "file" and isinstance(value, UploadFile):
            files.append(value)
        elif key == "purpose" and isinstance(value, str):
            purposes.append(value)
        elif key in ("file", "purpose"):
            kind = "a text field" if key == "purpose" else "a file, with a filename"
            raise InvalidRequest(f"{key} must be {kind}", param=key)
        elif key.startswith("expires_after"):
            raise UnsupportedParameter(
                "expires_after is not supported: files stay until they are deleted", param=key
            )
        else:
            raise InvalidRequest(f"unknown field {key[:200]!r}: remove it", param=key)
    if purposes != [PURPOSE]:
        raise InvalidRequest(f"purpose must be {PURPOSE!r}, once", param="purpose")
    if len(files) != 1:
        raise InvalidRequest("file is required, once: JSONL, an example a line", param="file")
    return files[0]


async def list_files(
    services: AnyTime,
    limit: Limit = 10_000,
    after: str | None = None,
    purpose: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Json:
    """By age, the newest first unless `order` says otherwise, a page at a time."""
    records, more = await asyncio.to_thread(
        services.store.files.list, limit=limit, after=after, purpose=purpose, order=order
    )
    return page([file_object(record) for record in records], more)


async def show(file_id: str, services: AnyTime) -> Json:
    """Raises FileNotKept."""
    return file_object(await asyncio.to_thread(services.store.files.get, file_id))


async def download(file_id: str, services: WhileOpen) -> Response:
    """The bytes that were uploaded. Raises FileNotKept, StoreCorrupt."""
    async with services.bulk:
        record, content = await asyncio.to_thread(services.store.files.open, file_id)
    return StreamingResponse(
        file_chunks(content),
        headers={"content-length": str(record.bytes)},
        media_type="application/octet-stream",
    )


async def delete(file_id: str, services: WhileOpen) -> Json:
    """Raises FileNotKept."""
    await asyncio.to_thread(services.store.files.delete, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def file_object(record: FileRecord) -> Json:
    """OpenAI's."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": record.created_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


def page(data: list[Json], more: bool) -> Json:
    """OpenAI's list of objects that have ids."""
    ids = [one["id"] for one in data]
    return {
        "object": "list",
        "data": data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": more,
    }
