"""Names, versions and what every alias means now, as rows.

Here: Catalog, CatalogWriter. Not here: files, digests' meaning; rows as records (records.py), how
aliases lie in their tables (aliases.py), transactions (database.py).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, select

from adapters_store.aliases import CURRENT_TAG, Alias, AliasRows, Cause, Move, Target
from adapters_store.content import AdapterFacts
from adapters_store.database import Database
from adapters_store.records import (
    AdapterRecord,
    VersionRecord,
    adapter_record,
    select_adapters,
    select_versions,
    version_record,
)
from adapters_store.schema import CURRENT, adapters, aliases, canaries, versions

__all__ = ["AdapterRecord", "Catalog", "CatalogWriter", "VersionRecord"]


class Catalog:
    """Names and versions for one base model. Safe from several threads and processes.

    True at every commit: a name has at least one version and one current one among them; numbers
    within a name rise in order of arrival, and a deleted one's is not given out again; a digest
    appears once per name; an alias and its canary are versions of its own name.
    """

    def __init__(self, database: Database, *, base: str) -> None:
        """`database` is closed with this."""
        self._database = database
        self._base = base

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def write(self) -> Iterator["CatalogWriter"]:
        """One transaction, as Database.write."""
        with self._database.write() as connection:
            yield CatalogWriter(connection, self._base)

    def adapter(self, name: str) -> AdapterRecord | None:
        with self._database.read() as connection:
            return _adapter(connection, self._base, name)

    def adapter_of_id(self, adapter_id: int) -> AdapterRecord | None:
        with self._database.read() as connection:
            query = select_adapters(self._base).where(adapters.c.id == adapter_id)
            row = connection.execute(query).first()
        return adapter_record(row) if row else None

    def version(self, name: str, number: int) -> VersionRecord | None:
        return self._first(versions.c.number == number, name)

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """Oldest first; empty if there is no such name."""
        query = select_versions(self._base, name).order_by(versions.c.number)
        with self._database.read() as connection:
            return tuple(version_record(row) for row in connection.execute(query))

    def versions_by_digest(self, name: str, prefix: str) -> tuple[VersionRecord, ...]:
        """The name's versions, at most two, whose digest starts with `prefix` (hex digits)."""
        query = (
            select_versions(self._base, name).where(versions.c.digest.startswith(prefix)).limit(2)
        )
        with self._database.read() as connection:
            return tuple(version_record(row) for row in connection.execute(query))

    def alias(self, name: str, tag: str = CURRENT_TAG) -> Alias | None:
        with self._database.read() as connection:
            return AliasRows(connection, self._base).find(name, tag)

    def aliases(self, name: str) -> tuple[Alias, ...]:
        """The bare name first, then by tag; empty if there is no such name."""
        with self._database.read() as connection:
            return AliasRows(connection, self._base).all(name)

    def moves(self, name: str, tag: str, *, limit: int) -> tuple[Move, ...]:
        """Of one alias, the newest first; empty if there never was one."""
        with self._database.read() as connection:
            return AliasRows(connection, self._base).moves(name, tag, limit=limit)

    def list(self, *, limit: int, after: str | None) -> tuple[AdapterRecord, ...]:
        """Up to `limit` adapters by name, those that come after the name `after`."""
        query = select_adapters(self._base).order_by(adapters.c.name).limit(limit)
        if after is not None:
            query = query.where(adapters.c.name > after)
        with self._database.read() as connection:
            return tuple(adapter_record(row) for row in connection.execute(query))

    def check(self) -> tuple[str, ...]:
        """Recounts what must be true, by AssertionError; the digests of all bases' versions."""
        with self._database.read() as connection:
            owned: dict[int, dict[int, int]] = {}  # adapter id → version number → version id
            digests: set[str] = set()
            for row in connection.execute(select(versions).order_by(versions.c.number)):
                owned.setdefault(row.adapter_id, {})[row.number] = row.id
                digests.add(row.digest)
            pointers = [
                (row.adapter_id, row.tag, row.version_id)
                for table in (aliases, canaries)
                for row in connection.execute(select(table))
            ]
            last = {row.id: row.last_number for row in connection.execute(select(adapters))}
        assert owned.keys() == last.keys(), "a name without versions, or versions without a name"
        current = {adapter_id for adapter_id, tag, _ in pointers if tag == CURRENT}
        assert current == last.keys(), "a name without a current version"
        for adapter_id, _, version_id in pointers:
            assert version_id in owned[adapter_id].values(), "an alias means another name's version"
        for adapter_id, numbers in owned.items():
            assert max(numbers) <= last[adapter_id], "a number beyond those given out"
        return tuple(sorted(digests))

    def _first(self, condition: Any, name: str) -> VersionRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select_versions(self._base, name).where(condition)).first()
        return version_record(row) if row else None


class CatalogWriter:
    """What may be done within one write transaction; its reads see its own writes."""

    def __init__(self, connection: Connection, base: str) -> None:
        self.connection = connection
        self._base = base
        self.aliases = AliasRows(connection, base)

    def adapter(self, name: str) -> AdapterRecord | None:
        return _adapter(self.connection, self._base, name)

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """Oldest first; empty if there is no such name."""
        query = select_versions(self._base, name).order_by(versions.c.number)
        return tuple(version_record(row) for row in self.connection.execute(query))

    def version_of_digest(self, name: str, digest: str) -> VersionRecord | None:
        query = select_versions(self._base, name).where(versions.c.digest == digest)
        row = self.connection.execute(query).first()
        return version_record(row) if row else None

    def add_version(
        self, name: str, digest: str, facts: AdapterFacts, *, owner: str, promote: bool = True
    ) -> VersionRecord:
        """The name's next version; a new name becomes `owner`'s.

        The bare name means it from now on if `promote` is true, or it is the first.
        """
        now = int(time.time())
        adapter_id = self._adapter_id(name, owner, now)
        mine = adapters.c.id == adapter_id
        number = self.connection.execute(
            adapters.update()
            .where(mine)
            .values(last_number=adapters.c.last_number + 1)
            .returning(adapters.c.last_number)
        ).scalar_one()
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
        self.connection.execute(insert)
        if promote or number == 1:
            self.aliases.point(adapter_id, CURRENT_TAG, Target(number), "upload")
        return VersionRecord(name, number, digest, facts, now)

    def point(
        self, name: str, tag: str, target: Target, cause: Cause, *, restores: int | None = None
    ) -> None:
        """Makes an alias of an existing name mean `target`, whose versions must exist."""
        self.aliases.point(self._existing_id(name), tag, target, cause, restores=restores)

    def remove_alias(self, name: str, tag: str, cause: Cause) -> None:
        self.aliases.remove(self._existing_id(name), tag, cause)

    def delete_version(self, name: str, number: int) -> None:
        """Removes one version; no alias may point there any more."""
        mine = (versions.c.adapter_id == self._existing_id(name)) & (versions.c.number == number)
        self.connection.execute(versions.delete().where(mine))

    def delete_adapter(self, name: str) -> None:
        """Removes the name with its versions and aliases."""
        mine = (adapters.c.base == self._base) & (adapters.c.name == name)
        self.connection.execute(adapters.delete().where(mine))

    def unreferred(self, digests: Sequence[str]) -> tuple[str, ...]:
        """Those digests that no version of any name, of any base, has."""
        query = select(versions.c.digest).where(versions.c.digest.in_(digests))
        referred = set(self.connection.execute(query).scalars())
        return tuple(digest for digest in digests if digest not in referred)

    def _find_id(self, name: str) -> int | None:
        mine = (adapters.c.base == self._base) & (adapters.c.name == name)
        return self.connection.execute(select(adapters.c.id).where(mine)).scalar()

    def _existing_id(self, name: str) -> int:
        found = self._find_id(name)
        assert found is not None, "the caller has seen this name in this transaction"
        return found

    def _adapter_id(self, name: str, owner: str, now: int) -> int:
        found = self._find_id(name)
        if found is not None:
            return found
        values = {"base": self._base, "name": name, "owner": owner, "created_at": now}
        insert = adapters.insert().values(values).returning(adapters.c.id)
        return self.connection.execute(insert).scalar_one()


def _adapter(connection: Connection, base: str, name: str) -> AdapterRecord | None:
    row = connection.execute(select_adapters(base).where(adapters.c.name == name)).first()
    return adapter_record(row) if row else None
