"""The database of names, versions and which version a name means now.

Here: Catalog, CatalogWriter, AdapterRecord, VersionRecord. Not here: files, digests' meaning,
what is PostgreSQL's own (databases.py).

SQLite runs with journal_mode=DELETE and synchronous=EXTRA, not WAL: a WAL database with several
connections checkpointing at once could be corrupted before SQLite 3.51.3, and Python ships older
ones. Writes here are rare and small, so WAL's gain is not needed; EXTRA also syncs the folder
after the journal is removed, without which a power cut could bring a committed write's journal
back and undo it.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, Select, create_engine, event, func, select
from sqlalchemy.exc import DatabaseError

from adapters_store.content import AdapterFacts
from adapters_store.databases import (
    UNREACHABLE,
    catalog_url,
    postgresql_engine,
    unreachable,
    unusable,
)
from adapters_store.errors import Unavailable
from adapters_store.schema import CURRENT, adapters, aliases, metadata, versions

BUSY_TIMEOUT_MS = 10_000


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


class Catalog:
    """Names and versions for one base model. Safe from several threads and processes.

    True at every commit: a name has at least one version and one current one among them; numbers
    within a name are 1, 2, 3… in order of arrival; a digest appears once per name.
    """

    def __init__(self, url: URL | str, *, base: str) -> None:
        """Makes the tables if they are not there. `url`: SQLite's or PostgreSQL's.

        Raises Unavailable, StoreCorrupt, ValueError (a URL of neither).
        """
        self._engine = _engine(url)
        self._base = base
        self._writing = threading.Lock()  # queues our threads fairly; SQLite's own wait is a poll
        try:
            with self._begin(write=True) as connection:
                metadata.create_all(connection)
        except DatabaseError as broken:
            self.close()
            raise unusable(self._engine.url, broken) from broken
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator["CatalogWriter"]:
        """One transaction that no other writer, in any process, overlaps; commits at the end.

        Raises Unavailable if others hold the database longer than BUSY_TIMEOUT_MS, or it is away.
        """
        with self._writing, self._begin(write=True) as connection:
            yield CatalogWriter(connection, self._base)

    def adapter(self, name: str) -> AdapterRecord | None:
        with self._begin() as connection:
            return _adapter(connection, self._base, name)

    def version(self, name: str, number: int) -> VersionRecord | None:
        return self._first(versions.c.number == number, name)

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """Oldest first; empty if there is no such name."""
        query = _versions(self._base, name).order_by(versions.c.number)
        with self._begin() as connection:
            return tuple(_version_record(row) for row in connection.execute(query))

    def versions_by_digest(self, name: str, prefix: str) -> tuple[VersionRecord, ...]:
        """The name's versions, at most two, whose digest starts with `prefix` (hex digits)."""
        query = _versions(self._base, name).where(versions.c.digest.startswith(prefix)).limit(2)
        with self._begin() as connection:
            return tuple(_version_record(row) for row in connection.execute(query))

    def list(self, *, limit: int, after: str | None) -> tuple[AdapterRecord, ...]:
        """Up to `limit` adapters by name, those that come after the name `after`."""
        query = _adapters(self._base).order_by(adapters.c.name).limit(limit)
        if after is not None:
            query = query.where(adapters.c.name > after)
        with self._begin() as connection:
            return tuple(_adapter_record(row) for row in connection.execute(query))

    def check(self) -> tuple[str, ...]:
        """Recounts what must be true, by AssertionError; the digests of all bases' versions."""
        with self._begin() as connection:
            owned: dict[int, dict[int, int]] = {}  # adapter id → version number → version id
            digests: set[str] = set()
            for row in connection.execute(select(versions).order_by(versions.c.number)):
                owned.setdefault(row.adapter_id, {})[row.number] = row.id
                digests.add(row.digest)
            current = {
                row.adapter_id: row.version_id for row in connection.execute(select(aliases))
            }
            names = set(connection.execute(select(adapters.c.id)).scalars())
        assert owned.keys() == names, "a name without versions, or versions without a name"
        assert current.keys() == names, "a name without a current version"
        for adapter_id, numbers in owned.items():
            assert list(numbers) == list(range(1, len(numbers) + 1)), "numbers with a gap"
            assert current[adapter_id] in numbers.values(), "another name's version is current"
        return tuple(sorted(digests))

    def _first(self, condition: Any, name: str) -> VersionRecord | None:
        with self._begin() as connection:
            row = connection.execute(_versions(self._base, name).where(condition)).first()
        return _version_record(row) if row else None

    @contextmanager
    def _begin(self, *, write: bool = False) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(adapterd_write=write)
                with connection.begin():
                    yield connection
        except UNREACHABLE as away:
            raise unreachable(self._engine.url, away) from away


class CatalogWriter:
    """What may be done within one write transaction; its reads see its own writes."""

    def __init__(self, connection: Connection, base: str) -> None:
        self._connection = connection
        self._base = base

    def adapter(self, name: str) -> AdapterRecord | None:
        return _adapter(self._connection, self._base, name)

    def version_of_digest(self, name: str, digest: str) -> VersionRecord | None:
        query = _versions(self._base, name).where(versions.c.digest == digest)
        row = self._connection.execute(query).first()
        return _version_record(row) if row else None

    def add_version(
        self, name: str, digest: str, facts: AdapterFacts, *, owner: str
    ) -> VersionRecord:
        """The name's next version, now its current one; a new name becomes `owner`'s."""
        now = int(time.time())
        adapter_id = self._adapter_id(name, owner, now)
        last = select(func.max(versions.c.number)).where(versions.c.adapter_id == adapter_id)
        number = (self._connection.execute(last).scalar() or 0) + 1
        insert = versions.insert().values(
            adapter_id=adapter_id,
            number=number,
            digest=digest,
            kind=facts.kind,
            rank=facts.rank,
            target_modules=list(facts.target_modules),
            bytes=facts.bytes,
            report=dict(facts.report),
            created_at=now,
        )
        version_id = self._connection.execute(insert.returning(versions.c.id)).scalar_one()
        self._move_alias(adapter_id, CURRENT, version_id)
        return VersionRecord(name, number, digest, facts, now)

    def delete_adapter(self, name: str) -> None:
        """Removes the name with its versions and aliases."""
        mine = (adapters.c.base == self._base) & (adapters.c.name == name)
        self._connection.execute(adapters.delete().where(mine))

    def digests(self, name: str) -> tuple[str, ...]:
        """Of all the name's versions, oldest first."""
        query = _versions(self._base, name).order_by(versions.c.number)
        return tuple(row.digest for row in self._connection.execute(query))

    def unreferred(self, digests: Sequence[str]) -> tuple[str, ...]:
        """Those digests that no version of any name, of any base, has."""
        query = select(versions.c.digest).where(versions.c.digest.in_(digests))
        referred = set(self._connection.execute(query).scalars())
        return tuple(digest for digest in digests if digest not in referred)

    def _adapter_id(self, name: str, owner: str, now: int) -> int:
        mine = (adapters.c.base == self._base) & (adapters.c.name == name)
        found = self._connection.execute(select(adapters.c.id).where(mine)).scalar()
        if found is not None:
            return found
        values = {"base": self._base, "name": name, "owner": owner, "created_at": now}
        insert = adapters.insert().values(values).returning(adapters.c.id)
        return self._connection.execute(insert).scalar_one()

    def _move_alias(self, adapter_id: int, tag: str, version_id: int) -> None:
        mine = (aliases.c.adapter_id == adapter_id) & (aliases.c.tag == tag)
        moved = self._connection.execute(aliases.update().where(mine).values(version_id=version_id))
        if moved.rowcount == 0:
            self._connection.execute(
                aliases.insert().values(adapter_id=adapter_id, tag=tag, version_id=version_id)
            )


def _engine(url: URL | str) -> Engine:
    url = catalog_url(url)
    if url.get_backend_name() == "postgresql":
        return postgresql_engine(url, busy_timeout_ms=BUSY_TIMEOUT_MS)
    engine = create_engine(url)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: sqlite3 would only say DEFERRED
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=DELETE",
        "synchronous=EXTRA",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """IMMEDIATE for writes: the lock is taken before the first read, so two never deadlock."""
    write = connection.get_execution_options().get("adapterd_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _versions(base: str, name: str) -> Select[Any]:
    return (
        select(versions, adapters.c.name)
        .join(adapters, versions.c.adapter_id == adapters.c.id)
        .where(adapters.c.base == base, adapters.c.name == name)
    )


def _adapters(base: str) -> Select[Any]:
    """Adapters with their current version, and how many versions they have."""
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


def _adapter(connection: Connection, base: str, name: str) -> AdapterRecord | None:
    row = connection.execute(_adapters(base).where(adapters.c.name == name)).first()
    return _adapter_record(row) if row else None


def _adapter_record(row: Row[Any]) -> AdapterRecord:
    return AdapterRecord(
        name=row.name,
        base=row.base,
        owner=row.owner,
        current=_version_record(row),
        created_at=row.adapter_created_at,
        versions=row.version_count,
    )


def _version_record(row: Row[Any]) -> VersionRecord:
    facts = AdapterFacts(row.kind, row.rank, tuple(row.target_modules), row.bytes, row.report)
    return VersionRecord(row.name, row.number, row.digest, facts, row.created_at)
