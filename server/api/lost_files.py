"""What a version's loading failed of, told by the adapter's name and as whose fault it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapters_store.catalog import VersionRecord
from adapters_store.errors import AdapterNotFound, StoreCorrupt
from adapters_store.store import AdapterStore


@asynccontextmanager
async def loading(version: VersionRecord | None, store: AdapterStore) -> AsyncIterator[None]:
    """The engine, within, knows `version` by its digest only, and not whether it should be there.

    Raises StoreCorrupt where the catalog has the version and the store no longer has its files;
    AdapterNotFound, as it came, where it has been deleted since.
    """
    try:
        yield
    except StoreCorrupt as broken:
        if version is None:
            raise
        raise StoreCorrupt(f"adapter {_reference(version)}: {broken.message}") from broken
    except AdapterNotFound as gone:
        if version is None or await asyncio.to_thread(_deleted, version, store):
            raise
        raise StoreCorrupt(
            f"adapter {_reference(version)} is in the catalog, but its files are not in the store: "
            "restore them, or delete the version and upload it again"
        ) from gone


def _deleted(version: VersionRecord, store: AdapterStore) -> bool:
    try:
        store.show(_reference(version))
    except AdapterNotFound:
        return True
    return False


def _reference(version: VersionRecord) -> str:
    return f"{version.name}@{version.number}"
