"""What an operator asks of the store as a whole: collect garbage, verify.

Here: routes under /v1/store. Not here: one adapter's life (adapters.py, aliases.py).
"""

import asyncio
from typing import Any

from fastapi import APIRouter

from adapters_store.store import AdapterStore
from server.api.services import AnyTime, WhileOpen

Json = dict[str, Any]


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/store")
    routes.post("/gc")(collect_garbage)
    routes.post("/verify")(verify)
    return routes


async def collect_garbage(services: WhileOpen) -> Json:
    """Removes files that no version refers to: what a crash left behind."""
    async with services.bulk:
        removed = await asyncio.to_thread(services.store.collect_garbage)
    return {"object": "store.gc", "removed": list(removed)}


async def verify(services: AnyTime) -> Json:
    """Reads every version's files again and compares their digests: as long as that takes."""
    async with services.bulk:
        checked, faults = await asyncio.to_thread(_verified, services.store)
    return {"object": "store.verify", "checked": checked, "faults": faults}


def _verified(store: AdapterStore) -> tuple[int, list[Json]]:
    checked, faults = 0, []
    for digest, fault in store.verify():
        checked += 1
        if fault is not None:
            faults.append({"digest": digest, "code": fault.code, "message": fault.message})
    return checked, faults
