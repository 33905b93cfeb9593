"""Rows of the catalog as frozen records, and the selects that yield them.

Here: VersionRecord, AdapterRecord. Not here: transactions, writing, aliases other than an adapter's
bare name (aliases.py).
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, select

from adapters_store.content import AdapterFacts
from adapters_store.schema import CURRENT, adapters, aliases, versions


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of one name. `created_at` in Unix seconds."""

    name: str
    number: int
    digest: str
    facts: AdapterFacts
    created_at: int


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One name and the version it means now. `created_at` in Unix seconds."""

    name: str
    base: str
    owner: str
    current: VersionRecord
    created_at: int
    versions: int  # how many it has
    id: int  # its own as long as it lives, and no later adapter's


def select_versions(base: str, name: str) -> Select[Any]:
    """Rows for `version_record`: all versions of one name."""
    return (
        select(versions, adapters.c.name)
        .join(adapters, versions.c.adapter_id == adapters.c.id)
        .where(adapters.c.base == base, adapters.c.name == name)
    )


def select_adapters(base: str) -> Select[Any]:
    """Rows for `adapter_record`: each adapter with its current version and how many it has."""
    count = (
        select(func.count())
        .where(versions.c.adapter_id == adapters.c.id)
        .correlate(adapters)
        .scalar_subquery()
    )
    current = versions.alias("current")
    return (
        select(
            current,
            adapters.c.name,
            adapters.c.base,
            adapters.c.owner,
            adapters.c.created_at.label("adapter_created_at"),
            count.label("version_count"),
        )
        .join(aliases, (aliases.c.adapter_id == adapters.c.id) & (aliases.c.tag == CURRENT))
        .join(current, current.c.id == aliases.c.version_id)
        .where(adapters.c.base == base)
    )


def version_record(row: Row[Any]) -> VersionRecord:
    facts = AdapterFacts(row.kind, row.rank, tuple(row.target_modules), row.bytes, row.report)
    return VersionRecord(row.name, row.number, row.digest, facts, row.created_at)


def adapter_record(row: Row[Any]) -> AdapterRecord:
    return AdapterRecord(
        name=row.name,
        base=row.base,
        owner=row.owner,
        current=version_record(row),
        created_at=row.adapter_created_at,
        versions=row.version_count,
        id=row.adapter_id,
    )
