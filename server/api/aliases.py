"""Which version an alias means, over HTTP: look, move, canary, roll back, remove.

Here: routes, bodies and objects of aliases. Not here: what moving means (aliasing.py of the store),
versions and uploads (adapters.py).
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Discriminator, Field, Tag

from adapters_store.aliases import Alias, Move, Target
from server.api.bodies import read_json
from server.api.schemas import StrictBody
from server.api.services import AnyTime, Services, WhileOpen

Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=1000)]
Expected = Annotated[int | None, Query(ge=0)]

VersionField = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1), Tag("~number")]
    | Annotated[str, Field(pattern="^[0-9a-f]{8,64}$"), Tag("~digest")],
    Discriminator(lambda value: "~digest" if isinstance(value, str) else "~number"),
]
"""A version of the adapter: its number, or 8 to 64 hex digits of its digest."""


class CanaryBody(StrictBody):
    version: VersionField
    weight: float  # its share of requests; 0 < weight < 1


class AliasBody(StrictBody):
    """PUT /v1/adapters/{name}/aliases/{tag}."""

    version: VersionField
    canary: CanaryBody | None = None
    expected_version: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None  # 0: does not exist


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/adapters/{name}/aliases")
    routes.get("")(list_aliases)
    routes.get("/{tag}")(show)
    routes.put("/{tag}")(move)
    routes.delete("/{tag}")(remove)
    routes.get("/{tag}/history")(history)
    routes.post("/{tag}/rollback")(roll_back)
    return routes


async def list_aliases(name: str, services: AnyTime) -> Json:
    """The bare name's ("current") first, then by tag. Raises AdapterNotFound."""
    found = await asyncio.to_thread(services.store.aliases.list, name)
    return {"object": "list", "data": [alias_object(one) for one in found], "has_more": False}


async def show(name: str, tag: str, services: AnyTime) -> Json:
    """Raises AdapterNotFound, AliasNotFound."""
    return alias_object(await asyncio.to_thread(services.store.aliases.get, name, tag))


async def move(name: str, tag: str, request: Request, services: WhileOpen) -> Json:
    """Makes the alias mean a version, or two; a new tag becomes an alias.

    Raises InvalidRequest, AdapterNotFound, AliasMoved (somebody else was first).
    """
    body = await read_json(request, AliasBody, max_bytes=services.limits.max_body_bytes)
    target = Target(await _number(services, name, body.version))
    if body.canary is not None:
        canary = await _number(services, name, body.canary.version)
        target = Target(target.number, canary, body.canary.weight)
    book, expected = services.store.aliases, body.expected_version
    return alias_object(await asyncio.to_thread(book.move, name, tag, target, expected=expected))


async def remove(
    name: str, tag: str, services: WhileOpen, expected_version: Expected = None
) -> Json:
    """Takes a tag away. Raises AdapterNotFound, AliasNotFound, AliasMoved, InvalidRequest."""
    book = services.store.aliases
    await asyncio.to_thread(book.remove, name, tag, expected=expected_version)
    return {"id": f"{name}:{tag}", "object": "alias.deleted", "deleted": True}


async def history(name: str, tag: str, services: AnyTime, limit: Limit = 100) -> Json:
    """Its moves, the newest first. Raises AdapterNotFound, AliasNotFound."""
    book = services.store.aliases
    moves = await asyncio.to_thread(book.history, name, tag, limit=limit + 1)
    data = [_move_object(one) for one in moves[:limit]]
    return {"object": "list", "data": data, "has_more": len(moves) > limit}


async def roll_back(
    name: str, tag: str, services: WhileOpen, expected_version: Expected = None
) -> Json:
    """Back to what it meant before its latest move. Raises AliasMoved, Conflict, as `show` else."""
    book = services.store.aliases
    return alias_object(
        await asyncio.to_thread(book.roll_back, name, tag, expected=expected_version)
    )


async def _number(services: Services, name: str, version: int | str) -> int:
    if isinstance(version, int):
        return version
    return (await asyncio.to_thread(services.store.show, f"{name}@{version}")).number


def alias_object(alias: Alias) -> Json:
    """What an alias means, as every route shows it."""
    canary = alias.canary
    return {
        "id": alias.name if alias.tag == "current" else f"{alias.name}:{alias.tag}",
        "object": "alias",
        "adapter": alias.name,
        "tag": alias.tag,
        "version": alias.version.number,
        "digest": alias.version.digest,
        "canary": None
        if canary is None
        else {
            "version": canary.version.number,
            "digest": canary.version.digest,
            "weight": canary.weight,
        },
    }


def _move_object(move: Move) -> Json:
    target = move.target
    canary = None
    if target is not None and target.canary_number is not None:
        canary = {
            "version": target.canary_number,
            "digest": move.canary_digest,
            "weight": target.weight,
        }
    return {
        "object": "alias.move",
        "move": move.move,
        "cause": move.cause,
        "version": None if target is None else target.number,  # null: it was removed
        "digest": move.digest,
        "canary": canary,
        "moved_at": move.moved_at,
    }
