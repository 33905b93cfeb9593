"""From an HTTP body to a checked schema, under limits that hold while the bytes arrive.

Here: reading, counting, strict JSON, strict pydantic, and what an error about a field says.
Not here: any particular schema.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.types import Receive

from adapters_store import strict_json
from adapters_store.errors import (
    AdapterdError,
    InvalidRequest,
    TooLarge,
    UnsupportedMediaType,
    UnsupportedParameter,
)

MAX_DEPTH = 64
INLINE_BYTES = 64 << 10  # parsed in about a millisecond; a longer body goes to a thread
DISCARD_BYTES = 64 << 20  # of a refused body, read and dropped so that its sender sees the refusal
UNSUPPORTED = "unsupported_parameter"  # pydantic error type: a known field we do not implement
MISPLACED = "misplaced_parameter"  # another: a field that does not go with the others
AT = "at"  # in such an error's context: the field below the error's location

Schema = TypeVar("Schema", bound=BaseModel)
_SIZE = re.compile(r"(List|String|Dictionary) should have ")


async def read_json(request: Request, schema: type[Schema], *, max_bytes: int) -> Schema:
    """The body, checked.

    Raises UnsupportedMediaType, TooLarge, and InvalidRequest or UnsupportedParameter naming the
    field.
    """
    return await read_one_of(request, lambda _: schema, max_bytes=max_bytes)


async def read_one_of(
    request: Request, choose: Callable[[Mapping[str, Any]], type[Schema]], *, max_bytes: int
) -> Schema:
    """The same, for a path that two dialects share: `choose` tells them apart by their fields."""

    def check(value: Any) -> Schema:
        if not isinstance(value, dict):
            raise InvalidRequest("the body must be a JSON object")
        return checked(choose(value), value)

    return await _read(request, check, max_bytes)


async def read_list(
    request: Request, schema: type[Schema], *, field: str, max_bytes: int
) -> Schema:
    """The same for a body that is a JSON array: it is checked as the schema's one field."""

    def check(value: Any) -> Schema:
        if not isinstance(value, list):
            raise InvalidRequest("the body must be a JSON array")
        return checked(schema, {field: value})

    return await _read(request, check, max_bytes)


async def _read(request: Request, check: Callable[[Any], Schema], max_bytes: int) -> Schema:
    require_content_type(request, "application/json")
    data = b"".join([chunk async for chunk in limited(request, max_bytes=max_bytes)])

    def parse() -> Schema:
        value = strict_json.loads(data, what="body", max_bytes=max_bytes, max_depth=MAX_DEPTH)
        return check(value)

    if len(data) > INLINE_BYTES:
        return await asyncio.to_thread(parse)
    return parse()


async def read_optional_json(request: Request, schema: type[Schema], *, max_bytes: int) -> Schema:
    """As `read_json`; a request without a body says `{}`."""
    length = request.headers.get("content-length", "0")
    if length == "0" and "transfer-encoding" not in request.headers:
        return checked(schema, {})
    return await read_json(request, schema, max_bytes=max_bytes)


def checked(schema: type[Schema], value: dict[str, Any]) -> Schema:
    """`value` as the schema has it. Raises InvalidRequest, UnsupportedParameter."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise field_error(details[0]) from None


def content_type(request: Request) -> str:
    """What the body is declared as, without parameters; "" if it is not."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def require_content_type(request: Request, wanted: str) -> None:
    """Raises UnsupportedMediaType unless the body is declared as `wanted`, uncompressed."""
    kind = content_type(request)
    if kind != wanted:
        raise UnsupportedMediaType(
            f"content-type is {kind or 'missing'}; send this route 'content-type: {wanted}'"
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"content-encoding {encoding[:40]} is not taken; send it plain")


async def limited(request: Request, *, max_bytes: int) -> AsyncGenerator[bytes]:
    """The body's chunks, counted. Raises TooLarge before more than `max_bytes` have passed."""
    error = TooLarge(f"the body is over this route's limit of {max_bytes} bytes; send less")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        await _discard(request.receive)
        raise error
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > max_bytes:
            await _discard(request.receive)
            raise error
        yield chunk


async def _discard(receive: Receive) -> None:
    """Reads on for a while: a client that is still sending when we hang up sees no reply."""
    seen = 0
    while seen < DISCARD_BYTES:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def field_error(details: ErrorDetails) -> AdapterdError:
    """One of pydantic's complaints in our words, with `param` as its path."""
    param = path(details["loc"])
    kind, context = details["type"], details.get("ctx", {})
    if kind == UNSUPPORTED:
        param = path((*details["loc"], context[AT]))
        return UnsupportedParameter(f"{param}: {details['msg']}", param=param)
    if kind == "extra_forbidden":
        return InvalidRequest(f"unknown parameter {param[:200]!r}: remove it", param=param)
    if kind == "missing":
        return InvalidRequest(f"{param} is required", param=param)
    if kind == MISPLACED:
        param = path((*details["loc"], context[AT]))
        return InvalidRequest(f"{param} {details['msg']}", param=param)
    said = details["msg"].removeprefix("Value error, ")
    if said.startswith("Input should be "):
        said = f"must be {said.removeprefix('Input should be ')}, not {_describe(details['input'])}"
    if sized := _SIZE.match(said):
        said = f"must have {said[sized.end() :].replace(' after validation', '')}"
    return InvalidRequest(f"{param}: {said}" if param else said, param=param or None)


def path(location: Sequence[int | str]) -> str:
    """A field's place in OpenAI's words, messages[0].content; without the tags of unions, "~…"."""
    shown = ""
    for part in location:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif not part.startswith("~"):
            shown += f".{part}" if shown else part
    return shown


def _describe(value: Any) -> str:
    """A value in an error: itself where that is short, else what it is."""
    if isinstance(value, (list, dict)):
        return f"an {'array' if isinstance(value, list) else 'object'} of {len(value)}"
    if isinstance(value, str) and len(value) > 60:
        return f"a string of {len(value)} characters"
    return json.dumps(value, ensure_ascii=False)
