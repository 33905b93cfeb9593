"""vLLM's two calls that load and unload adapters, with its replies and its words for refusals.

Here: the routes and their bodies. Not here: OpenAI's routes, which vLLM shares (openai.py).
"""

from typing import Annotated, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from adapters_store.errors import AdapterNotFound, AlreadyLoaded, InvalidRequest
from server.api.bodies import read_json
from server.api.errors import told_as
from server.api.loading import SourceField, load_as, unload
from server.api.schemas import Refused, StrictBody
from server.api.services import WhileOpen

FIELDS = {"name": "lora_name", "source": "lora_path"}  # ours → vLLM's


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1")
    routes.post("/load_lora_adapter", response_model=None)(load_lora_adapter)
    routes.post("/unload_lora_adapter", response_model=None)(unload_lora_adapter)
    return routes


class LoadBody(StrictBody):
    """POST /v1/load_lora_adapter."""

    refused: ClassVar[Refused] = {"is_3d_lora_weight": (False,)}

    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: SourceField
    load_inplace: bool = False
    base_model_name: str | None = None


class UnloadBody(StrictBody):
    """POST /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1)]
    lora_int_id: int | None = None  # vLLM takes it and goes by the name, too


async def load_lora_adapter(request: Request, services: WhileOpen) -> Response:
    """Publishes what is at `lora_path`; with `load_inplace`, as the next version of the name."""
    body = await read_json(request, LoadBody, max_bytes=services.limits.max_body_bytes)
    name = body.lora_name
    if name == services.base_name:
        raise InvalidRequest(
            f"The lora adapter '{name}' conflicts with a served base model.", param="lora_name"
        )
    if body.base_model_name not in (None, services.base_name):
        raise InvalidRequest(
            f"base_model_name: this server's base is {services.base_name}; leave it out",
            param="base_model_name",
        )
    with told_as(FIELDS):
        try:
            await load_as(services, name, body.lora_path, in_place=body.load_inplace)
        except AlreadyLoaded:
            raise AlreadyLoaded(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True.",
                param="lora_name",
            ) from None
        except AdapterNotFound as error:
            raise AdapterNotFound(
                f"Loading lora {name} failed: No adapter found for {body.lora_path}: "
                f"{error.message}",
                param="lora_path",
            ) from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: Request, services: WhileOpen) -> Response:
    """Deletes the adapter; running requests finish on it."""
    body = await read_json(request, UnloadBody, max_bytes=services.limits.max_body_bytes)
    name = body.lora_name
    try:
        await unload(services, name)
    except AdapterNotFound:
        raise AdapterNotFound(
            f"The lora adapter '{name}' cannot be found.", param="lora_name"
        ) from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
