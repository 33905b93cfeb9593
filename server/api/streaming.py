"""How a generation's reply travels: whole, or as server-sent events; and what ends it early.

Here: GenerationReply, the watch for a client that went away. Not here: any dialect's words.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from adapters_store.errors import AdapterdError, ServerFault
from server.api.choice import Delta
from server.api.errors import error_body, told_as
from server.api.generation import Generation, Run, prepare
from server.api.openai_format import Answer, Format
from server.api.services import Services
from server.api.wanted import Wanted
from server.engine.messages import Timing

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What tells one API's replies from another's."""

    id_prefix: str
    format: Callable[[Generation], Format]
    fields: Mapping[str, str] = field(default_factory=dict)  # our names of fields → its own
    done: bytes = b"data: [DONE]\n\n"  # what follows a stream's last chunk


class GenerationReply(Response):
    """Does a request's work as the response is sent, and stops when its client goes away.

    Nothing is sent before the engine's first event, so an early error keeps its own status. A
    later one ends the stream with an `error` event, and nothing after it.
    """

    def __init__(self, services: Services, wanted: Wanted, dialect: Dialect) -> None:
        super().__init__()
        self._services = services
        self._wanted = wanted
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._work(scope, receive, send))

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        with told_as(self._dialect.fields), self._services.admission.place():
            request_id = f"{self._dialect.id_prefix}-{uuid.uuid4().hex}"
            generation = await prepare(self._services, self._wanted, request_id=request_id)
            form = self._dialect.format(generation)
            run = Run(self._services, generation)
            async with aclosing(run.deltas()) as steps:
                first = await anext(steps)
                if self._wanted.stream:
                    await self._stream(scope, send, generation, run, form, first, steps)
                    return
                answers = await _gather(generation, first, steps)
        reply = form.whole(answers, run.usage)
        total = {"x-adapterd-total-ms": _milliseconds(time.perf_counter() - began)}
        headers = _headers(generation, run.timing) | total
        await JSONResponse(reply, headers=headers)(scope, receive, send)

    async def _stream(
        self,
        scope: Scope,
        send: Send,
        generation: Generation,
        run: Run,
        form: Format,
        first: list[Delta],
        steps: AsyncGenerator[list[Delta]],
    ) -> None:
        headers = _headers(generation, run.timing) | {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would gather the events
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

        async def push(objects: Iterable[dict[str, Any]]) -> None:
            data = b"".join(_event(one) for one in objects)
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await push(_chunks(form, first))
            async for deltas in steps:
                await push(_chunks(form, deltas))
            ending = b"".join([*map(_event, form.closing(run.usage)), self._dialect.done])
        except Exception as error:
            ending = _event(error_body(_told(error, scope)))
        await send({"type": "http.response.body", "body": ending, "more_body": False})


async def unless_disconnected(receive: Receive, work: Awaitable[Result]) -> Result:
    """`work`'s result; cancels it and raises ClientDisconnect as soon as the client goes away.

    The body must have been read: the only message still to come is the disconnect.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientDisconnect
    finally:
        watcher.cancel()
        worker.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gather(
    generation: Generation, first: list[Delta], steps: AsyncGenerator[list[Delta]]
) -> list[Answer]:
    answers = [Answer() for _ in range(generation.choices)]
    for delta in first:
        answers[delta.choice].add(delta)
    async for deltas in steps:
        for delta in deltas:
            answers[delta.choice].add(delta)
    return answers


def _chunks(form: Format, deltas: list[Delta]) -> Iterable[dict[str, Any]]:
    return (chunk for delta in deltas if not delta.empty for chunk in form.chunks(delta))


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)  # a tenth of the time that json takes


def _told(error: Exception, scope: Scope) -> AdapterdError:
    """What the client is told: our errors as they are, of any other only that the log has it."""
    if isinstance(error, AdapterdError):
        return error
    _LOG.error("request %s: stream failed", scope["state"]["request_id"], exc_info=error)
    return ServerFault("internal error; the log has it under this reply's x-request-id")


def _headers(generation: Generation, timing: Timing | None) -> dict[str, str]:
    """Which version answers, and where the time to the first token went, in milliseconds."""
    headers = {"x-adapterd-adapter-version": generation.digest or "base"}
    if timing is not None:
        spent = {"queue": timing.queue_s, "load": timing.load_s, "prefill": timing.prefill_s}
        headers |= {f"x-adapterd-{name}-ms": _milliseconds(s) for name, s in spent.items()}
    return headers


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3f}"
