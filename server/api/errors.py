"""From the error tree to HTTP: the one place that knows status codes.

Here: the table, the shape of the body, the handlers. Not here: anything that decides to raise.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from adapters_store import errors
from adapters_store.errors import AdapterdError

MAX_BODY_BYTES = 4096
MAX_MESSAGE_CHARACTERS = 2000
MAX_PARAM_CHARACTERS = 200
RETRY_AFTER_S = {429: 1, 503: 5}  # a queue moves within a second, an engine restarts within five

_BAD = (400, "invalid_request_error")
_FAULT = (500, "server_error")
_AWAY = (503, "server_error")

# Every class, so that a new one is a decision; OpenAI's words for the types.
STATUS: dict[type[AdapterdError], tuple[int, str]] = {
    AdapterdError: _FAULT,
    errors.InvalidRequest: _BAD,
    errors.ContextLengthExceeded: _BAD,
    errors.UnsupportedParameter: _BAD,
    errors.AlreadyLoaded: (400, "InvalidUserInput"),  # vLLM's word, from whose call it comes
    errors.InvalidDataset: _BAD,
    errors.InvalidAdapter: _BAD,
    errors.UnsupportedAdapter: _BAD,
    errors.TooLarge: (413, "invalid_request_error"),
    errors.UnsupportedMediaType: (415, "invalid_request_error"),
    errors.MethodNotAllowed: (405, "invalid_request_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.ModelNotFound: (404, "invalid_request_error"),
    errors.AdapterNotFound: (404, "invalid_request_error"),
    errors.AliasNotFound: (404, "invalid_request_error"),
    errors.FileNotKept: (404, "invalid_request_error"),
    errors.JobNotFound: (404, "invalid_request_error"),
    errors.Conflict: (409, "invalid_request_error"),
    errors.NameReserved: (409, "invalid_request_error"),
    errors.AliasMoved: (409, "invalid_request_error"),
    errors.VersionInUse: (409, "invalid_request_error"),
    errors.Overloaded: (429, "rate_limit_error"),
    errors.Unavailable: _AWAY,
    errors.EngineUnavailable: _AWAY,
    errors.Draining: _AWAY,
    errors.ServerFault: _FAULT,
    errors.EngineStartFailed: _FAULT,
    errors.AdapterLoadFailed: _FAULT,
    errors.StoreCorrupt: _FAULT,
    errors.EngineFailed: _FAULT,
}


def status_of(error: AdapterdError) -> tuple[int, str]:
    """HTTP status and OpenAI's error type; a class not in the table counts as its parent."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(error: AdapterdError) -> dict[str, Any]:
    """`{"error": {…}}`, at most MAX_BODY_BYTES once encoded: what a client sent may be in it."""
    param = None if error.param is None else _printable(error.param, MAX_PARAM_CHARACTERS)
    message = _printable(error.message, MAX_MESSAGE_CHARACTERS)
    body = {
        "message": message,
        "type": status_of(error)[1],
        "param": param,
        "code": error.code,
    }
    while len(encode({"error": body})) > MAX_BODY_BYTES:  # escapes and non-ASCII take more
        message = _printable(message, len(message) // 2)
        body["message"] = message
    return {"error": body}


def encode(body: dict[str, Any]) -> bytes:
    """JSON as it goes over the wire."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def error_response(error: AdapterdError, *, headers: dict[str, str] | None = None) -> Response:
    """The reply for an error, with Retry-After where trying again can help."""
    status, _ = status_of(error)
    headers = dict(headers or {})
    if status in RETRY_AFTER_S:
        headers["retry-after"] = str(RETRY_AFTER_S[status])
    return Response(
        encode(error_body(error)),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


@contextmanager
def told_as(fields: Mapping[str, str]) -> Iterator[None]:
    """Errors of the `with` name a dialect's own fields: `fields` maps our names to its."""
    try:
        yield
    except AdapterdError as error:
        if error.param is not None:
            error.param = fields.get(error.param, error.param)
        raise


def install(app: FastAPI) -> None:
    """Gives every error that reaches the app, the framework's own included, our shape."""
    app.add_exception_handler(AdapterdError, _on_known)
    app.add_exception_handler(HTTPException, _on_framework)
    app.add_exception_handler(RequestValidationError, _on_parameters)


async def _on_known(request: Request, error: Exception) -> Response:
    assert isinstance(error, AdapterdError)
    return error_response(error)


async def _on_framework(request: Request, error: Exception) -> Response:
    """Starlette's router knows only "no such path" and "not this verb"."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return error_response(errors.NotFound(f"no such route: {where}"))
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        message = f"{where} is not allowed; this path takes {allowed.get('Allow', 'another verb')}"
        return error_response(errors.MethodNotAllowed(message), headers=allowed)
    return error_response(errors.InvalidRequest(str(error.detail)))


async def _on_parameters(request: Request, error: Exception) -> Response:
    """Query parameters, the only thing that FastAPI itself validates here."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or None
    return error_response(errors.InvalidRequest(f"{name}: {first['msg']}", param=name))


def _printable(text: str, limit: int) -> str:
    """At most `limit` characters, without lone surrogates, which no UTF-8 body can carry."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"
