"""Multipart bodies: their files spooled to disk as they arrive, under limits.

Here: read_form. Not here: what the parts mean.
"""

from contextlib import aclosing

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters_store.errors import InvalidRequest
from server.api.bodies import limited, require_content_type
from server.api.services import ApiLimits

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 8


async def read_form(request: Request, limits: ApiLimits) -> FormData:
    """The parts, to be closed by the caller. Raises TooLarge, InvalidRequest."""
    require_content_type(request, "multipart/form-data")
    async with aclosing(limited(request, max_bytes=limits.max_upload_bytes)) as stream:
        parser = MultiPartParser(
            request.headers,
            stream,
            max_files=limits.max_upload_files,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise InvalidRequest(f"multipart body: {error.message}") from None
