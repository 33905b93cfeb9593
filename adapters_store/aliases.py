"""Movable pointers to versions: what each alias means, who gets which version, every move it made.

Here: Alias, Canary, Move, Target, AliasRows. Not here: transactions (catalog.py gives them), what a
client may ask for (aliasing.py).
"""

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Float, Row, Select, cast, func, null, select, union_all

from adapters_store.records import VersionRecord, version_record
from adapters_store.schema import CURRENT, adapters, alias_moves, aliases, canaries, versions

CURRENT_TAG = "current"  # what people call the alias that is an adapter's bare name

Cause = Literal["upload", "move", "rollback", "delete"]


@dataclass(frozen=True, slots=True)
class Canary:
    """The second version of an alias, and its share of requests, 0 < weight < 1."""

    version: VersionRecord
    weight: float


@dataclass(frozen=True, slots=True)
class Alias:
    """What `name` (tag "current") or `name:tag` means now."""

    name: str
    tag: str
    version: VersionRecord
    canary: Canary | None = None

    def chosen(self, key: str | None) -> VersionRecord:
        """The version for one request.

        Requests of one `key` get the same version as long as the weight stays, and those that get
        the canary still do when its weight grows. Without a key it is drawn anew each time.
        """
        if self.canary is None:
            return self.version
        place = random.random() if key is None else _place(self.name, self.tag, key)
        return self.canary.version if place < self.canary.weight else self.version


@dataclass(frozen=True, slots=True)
class Target:
    """Where an alias may point: numbers of versions of its adapter."""

    number: int
    canary_number: int | None = None
    weight: float | None = None  # with a canary only


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of an alias's history. `target` None: the alias was removed."""

    move: int  # 1, 2, 3… of this alias
    cause: Cause
    target: Target | None
    digest: str | None
    canary_digest: str | None
    restores: int  # the move whose state this brought back; of most, itself
    moved_at: int  # Unix seconds


def _place(name: str, tag: str, key: str) -> float:
    """Where a key lies in [0, 1): the same everywhere, and another for each alias."""
    hashed = hashlib.sha256(f"{name}:{tag}\n{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(hashed[:8]) / 2**64


class AliasRows:
    """Aliases and their moves within one transaction of the catalog."""

    def __init__(self, connection: Connection, base: str) -> None:
        self._connection = connection
        self._base = base

    def find(self, name: str, tag: str) -> Alias | None:
        found = self._aliases(name, _stored(tag))
        return found[0] if found else None

    def all(self, name: str) -> tuple[Alias, ...]:
        """The bare name first, then by tag; empty if there is no such adapter."""
        return tuple(self._aliases(name, None))

    def moves(self, name: str, tag: str, *, limit: int) -> tuple[Move, ...]:
        """The newest first; empty if there never was such an alias."""
        query = (
            select(alias_moves)
            .join(adapters, adapters.c.id == alias_moves.c.adapter_id)
            .where(adapters.c.base == self._base, adapters.c.name == name)
            .where(alias_moves.c.tag == _stored(tag))
            .order_by(alias_moves.c.move.desc())
            .limit(limit)
        )
        return tuple(_move(row) for row in self._connection.execute(query))

    def point(
        self,
        adapter_id: int,
        tag: str,
        target: Target,
        cause: Cause,
        *,
        restores: int | None = None,
    ) -> None:
        """Makes the alias mean `target`, whose versions must exist, and notes the move."""
        tag = _stored(tag)
        ids = self._version_ids(adapter_id, target)
        self._clear(adapter_id, tag)
        row = {"adapter_id": adapter_id, "tag": tag}
        self._connection.execute(aliases.insert().values(**row, version_id=ids[target.number][0]))
        if target.canary_number is not None:
            canary = {"version_id": ids[target.canary_number][0], "weight": target.weight}
            self._connection.execute(canaries.insert().values(**row, **canary))
        digests = {number: digest for number, (_, digest) in ids.items()}
        self._note(adapter_id, tag, target, digests, cause, restores)

    def remove(self, adapter_id: int, tag: str, cause: Cause) -> None:
        """Takes the alias away; its history stays."""
        self._clear(adapter_id, _stored(tag))
        self._note(adapter_id, _stored(tag), None, {}, cause, None)

    def _clear(self, adapter_id: int, tag: str) -> None:
        mine = (aliases.c.adapter_id == adapter_id) & (aliases.c.tag == tag)
        self._connection.execute(aliases.delete().where(mine))  # its canary goes along

    def _version_ids(self, adapter_id: int, target: Target) -> dict[int, tuple[int, str]]:
        query = (
            select(versions.c.number, versions.c.id, versions.c.digest)
            .where(versions.c.adapter_id == adapter_id)
            .where(versions.c.number.in_(numbers_of(target)))
        )
        return {row.number: (row.id, row.digest) for row in self._connection.execute(query)}

    def _note(
        self,
        adapter_id: int,
        tag: str,
        target: Target | None,
        digests: dict[int, str],
        cause: Cause,
        restores: int | None,
    ) -> None:
        mine = (alias_moves.c.adapter_id == adapter_id) & (alias_moves.c.tag == tag)
        last = self._connection.execute(select(func.max(alias_moves.c.move)).where(mine)).scalar()
        move = (last or 0) + 1
        canary = None if target is None else target.canary_number
        self._connection.execute(
            alias_moves.insert().values(
                adapter_id=adapter_id,
                tag=tag,
                move=move,
                cause=cause,
                restores=restores or move,
                number=None if target is None else target.number,
                digest=None if target is None else digests[target.number],
                canary_number=canary,
                canary_digest=None if canary is None else digests[canary],
                canary_weight=None if target is None else target.weight,
                moved_at=int(time.time()),
            )
        )

    def _aliases(self, name: str, tag: str | None) -> list[Alias]:
        found: dict[str, Alias] = {}
        shares: dict[str, Canary] = {}
        for row in self._connection.execute(_select(self._base, name, tag)):
            version = version_record(row)
            if row.weight is None:
                found[row.tag] = Alias(name, row.tag or CURRENT_TAG, version)
            else:
                shares[row.tag] = Canary(version, row.weight)
        return [
            Alias(alias.name, alias.tag, alias.version, shares.get(tag))
            for tag, alias in sorted(found.items())
        ]


def _stored(tag: str) -> str:
    """The tag as rows have it."""
    return CURRENT if tag == CURRENT_TAG else tag


def _select(base: str, name: str, tag: str | None) -> Any:
    """Rows of versions, each with the tag it has and, of a canary, its weight."""
    parts: list[Select[Any]] = []
    for table, weight in ((aliases, cast(null(), Float)), (canaries, canaries.c.weight)):
        part = (
            select(versions, adapters.c.name, table.c.tag, weight.label("weight"))
            .join(table, table.c.version_id == versions.c.id)
            .join(adapters, table.c.adapter_id == adapters.c.id)
            .where(adapters.c.base == base, adapters.c.name == name)
        )
        parts.append(part if tag is None else part.where(table.c.tag == tag))
    return union_all(*parts)


def _move(row: Row[Any]) -> Move:
    target = None
    if row.number is not None:
        target = Target(row.number, row.canary_number, row.canary_weight)
    return Move(
        row.move, row.cause, target, row.digest, row.canary_digest, row.restores, row.moved_at
    )


def numbers_of(target: Target) -> Sequence[int]:
    """The versions that a target names."""
    return [n for n in (target.number, target.canary_number) if n is not None]
