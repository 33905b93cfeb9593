"""OpenAI's routes: completions, chat, models. Thin: body → Wanted → the one generation core.

Here: routes and model cards. Not here: what the bodies and replies look like inside.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from adapters_store.catalog import AdapterRecord
from adapters_store.errors import AdapterNotFound, AliasNotFound, ModelNotFound
from adapters_store.store import AdapterStore
from server.api.bodies import read_json
from server.api.openai_format import ChatFormat, CompletionFormat
from server.api.schemas import ChatBody, CompletionBody
from server.api.services import AnyTime, Services, WhileOpen
from server.api.streaming import Dialect, GenerationReply
from server.api.wanted import Wanted

STICKY_HEADER = "x-adapterd-sticky-key"  # requests of one key get one version of a canary
PAGE = 1000  # adapters read from the catalog at a time

Json = dict[str, Any]


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1")
    routes.post("/completions", response_model=None)(completions)
    routes.post("/chat/completions", response_model=None)(chat_completions)
    routes.get("/models")(list_models)
    routes.get("/models/{model:path}")(show_model)
    return routes


async def completions(request: Request, services: WhileOpen) -> Response:
    """Continue a text, or several, as text or token ids."""
    body = await read_json(request, CompletionBody, max_bytes=services.limits.max_body_bytes)
    logprobs = body.logprobs is not None
    wanted = _sticky(request, body.wanted())
    return _reply(services, wanted, "cmpl", CompletionFormat, logprobs)


async def chat_completions(request: Request, services: WhileOpen) -> Response:
    """Answer a conversation through the base's chat template."""
    body = await read_json(request, ChatBody, max_bytes=services.limits.max_body_bytes)
    wanted = _sticky(request, body.wanted())
    return _reply(services, wanted, "chatcmpl", ChatFormat, body.logprobs)


def _sticky(request: Request, wanted: Wanted) -> Wanted:
    """With the key from the header, which a proxy may set, over the body's `user`."""
    key = request.headers.get(STICKY_HEADER)
    return wanted if key is None else dataclasses.replace(wanted, sticky_key=key)


def _reply(
    services: Services,
    wanted: Wanted,
    id_prefix: str,
    form: Callable[..., CompletionFormat | ChatFormat],
    logprobs: bool,
) -> GenerationReply:
    dialect = Dialect(
        id_prefix,
        lambda generation: form(generation, logprobs=logprobs, include_usage=wanted.include_usage),
    )
    return GenerationReply(services, wanted, dialect)


async def list_models(services: AnyTime) -> Json:
    """The base, then every adapter."""
    records = await asyncio.to_thread(every_adapter, services.store)
    cards = [_base_card(services), *(_adapter_card(services, record) for record in records)]
    return {"object": "list", "data": cards}


async def show_model(model: str, services: AnyTime) -> Json:
    """One card, of whatever a request may name: `name@version` too. Raises ModelNotFound."""
    if model == services.base_name:
        return _base_card(services)
    try:
        version = await asyncio.to_thread(services.store.show, model)
        record = await asyncio.to_thread(services.store.get, version.name)
    except (AdapterNotFound, AliasNotFound):
        raise ModelNotFound(
            f"the model {model!r} does not exist; GET /v1/models lists what does", param="model"
        ) from None
    root = f"{version.name}@{version.digest[:12]}"
    return _adapter_card(services, record) | {"id": model, "root": root}


def every_adapter(store: AdapterStore) -> list[AdapterRecord]:
    """All of them, by name. Blocking."""
    records, more, after = [], True, None
    while more:
        page, more = store.list(limit=PAGE, after=after)
        records.extend(page)
        after = page[-1].name if page else None
    return records


def _base_card(services: Services) -> Json:
    """vLLM's fields; the context's length is known once the engine has started."""
    ready = services.engine.state in ("ready", "restarting")
    return {
        "id": services.base_name,
        "object": "model",
        "created": services.started_at,
        "owned_by": "adapterd",
        "root": services.base_name,
        "parent": None,
        "max_model_len": services.engine.info.max_model_len if ready else None,
    }


def _adapter_card(services: Services, record: AdapterRecord) -> Json:
    return _base_card(services) | {
        "id": record.name,
        "created": int(record.created_at),
        "owned_by": record.owner,
        "root": f"{record.name}@{record.current.digest[:12]}",
        "parent": services.base_name,
    }
