"""What may be done with aliases: look, move by compare-and-swap, roll back, remove.

Here: AliasBook, parse_name. Not here: how aliases lie in tables (aliases.py), HTTP, files.
"""

import re
from collections.abc import Sequence

from adapters_store.aliases import CURRENT_TAG, Alias, Move, Target, numbers_of
from adapters_store.catalog import Catalog, CatalogWriter
from adapters_store.errors import (
    AdapterNotFound,
    AliasMoved,
    AliasNotFound,
    Conflict,
    InvalidRequest,
)
from adapters_store.strict_json import shorten

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
HISTORY = 1000  # moves that a rollback looks back over


def not_found(reference: str) -> AdapterNotFound:
    name, at, version = reference.partition("@")
    if at:
        return AdapterNotFound(f"no adapter {shorten(name)} has a version {shorten(version)}")
    return AdapterNotFound(f"no adapter is named {shorten(reference)}")


def parse_name(reference: str) -> tuple[str, str]:
    """Name and tag of `name` or `name:tag`. Raises AdapterNotFound if it can be neither."""
    name, colon, tag = reference.partition(":")
    # Only a name that could exist reaches the database: others may not even be text to it.
    if not NAME.fullmatch(name) or (colon and not NAME.fullmatch(tag)):
        raise not_found(reference)
    return name, tag if colon else CURRENT_TAG


class AliasBook:
    """The aliases of one catalog. The tag "current" is the one that is an adapter's bare name.

    Every change may say which version number the alias should mean before it (`expected`; 0: the
    alias should not exist), and then is made only if it does: of two that expect the same, one
    wins. Methods block; call them from threads.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def get(self, name: str, tag: str = CURRENT_TAG) -> Alias:
        """Raises AdapterNotFound, AliasNotFound."""
        found = self._catalog.alias(name, tag)
        if found is None:
            self._require_adapter(name)
            raise _no_alias(name, tag)
        return found

    def list(self, name: str) -> tuple[Alias, ...]:
        """The bare name's first, then by tag. Raises AdapterNotFound."""
        found = self._catalog.aliases(name) if NAME.fullmatch(name) else ()
        if not found:
            raise not_found(name)
        return found

    def history(self, name: str, tag: str, *, limit: int) -> tuple[Move, ...]:
        """The newest first; also of an alias that was removed. Errors as `get`."""
        moves = self._catalog.moves(name, tag, limit=limit)
        if not moves:
            self._require_adapter(name)
            raise _no_alias(name, tag)
        return moves

    def move(self, name: str, tag: str, target: Target, *, expected: int | None = None) -> Alias:
        """Makes `name:tag` mean `target`; a tag that is new becomes an alias.

        Raises InvalidRequest, AdapterNotFound for versions that are not there, AliasMoved.
        """
        if not NAME.fullmatch(tag):
            raise InvalidRequest(
                f"{shorten(tag)} is no tag: use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting "
                "with a letter or digit",
                param="tag",
            )
        _check_canary(target)
        with self._catalog.write() as writer:
            there = _numbers(writer, name)
            for number in numbers_of(target):
                if number not in there:
                    raise not_found(f"{name}@{number}")
            now = writer.aliases.find(name, tag)
            compare(name, tag, now, expected)
            if now is None or _target(now) != target:
                writer.point(name, tag, target, "move")
            return _found(writer, name, tag)

    def roll_back(self, name: str, tag: str, *, expected: int | None = None) -> Alias:
        """Makes the alias mean what it did before its latest move; again, what it did before that.

        What was rolled back from is not come back to, nor are versions that were deleted; an alias
        that was removed is there again. Raises AdapterNotFound, AliasNotFound, AliasMoved, and
        Conflict where there is nothing to go back to.
        """
        with self._catalog.write() as writer:
            there = _numbers(writer, name)
            moves = writer.aliases.moves(name, tag, limit=HISTORY)
            if not moves:
                raise _no_alias(name, tag)
            compare(name, tag, writer.aliases.find(name, tag), expected)
            for move in moves:
                if (
                    move.move < moves[0].restores
                    and move.target is not None
                    and move.target != moves[0].target
                    and there.issuperset(numbers_of(move.target))
                ):
                    writer.point(name, tag, move.target, "rollback", restores=move.restores)
                    return _found(writer, name, tag)
        raise Conflict(
            f"{_shown(name, tag)} has no earlier state whose versions are still there; move it to "
            "a version by its number"
        )

    def remove(self, name: str, tag: str, *, expected: int | None = None) -> None:
        """Takes a tag away; its history stays. Raises AdapterNotFound, AliasNotFound, AliasMoved.

        The bare name cannot be taken from an adapter: InvalidRequest.
        """
        if tag == CURRENT_TAG:
            raise InvalidRequest(
                f"{CURRENT_TAG} is the adapter's bare name, which always means a version; move it, "
                "or delete the adapter",
                param="tag",
            )
        with self._catalog.write() as writer:
            _numbers(writer, name)
            now = writer.aliases.find(name, tag)
            if now is None:
                raise _no_alias(name, tag)
            compare(name, tag, now, expected)
            writer.remove_alias(name, tag, "delete")

    def _require_adapter(self, name: str) -> None:
        if not NAME.fullmatch(name) or self._catalog.adapter(name) is None:
            raise not_found(name)


def release_version(writer: CatalogWriter, name: str, number: int, rest: Sequence[int]) -> None:
    """Moves every alias of the name off a version that is about to be deleted.

    A canary's other version takes all; the bare name goes to the newest of `rest`, the versions
    that stay; another alias that meant only this version is removed.
    """
    for alias in writer.aliases.all(name):
        target = _target(alias)
        kept = [left for left in numbers_of(target) if left != number]
        if len(kept) == len(numbers_of(target)):
            continue
        if kept:
            writer.point(name, alias.tag, Target(kept[0]), "delete")
        elif alias.tag == CURRENT_TAG:
            writer.point(name, alias.tag, Target(max(rest)), "delete")
        else:
            writer.remove_alias(name, alias.tag, "delete")


def aliases_of(writer: CatalogWriter, name: str, number: int) -> list[str]:
    """The aliases that mean a version, as people write them."""
    found = writer.aliases.all(name)
    return [_shown(name, one.tag) for one in found if number in numbers_of(_target(one))]


def _numbers(writer: CatalogWriter, name: str) -> set[int]:
    found = {version.number for version in writer.versions(name)} if NAME.fullmatch(name) else None
    if not found:
        raise not_found(name)
    return found


def _found(writer: CatalogWriter, name: str, tag: str) -> Alias:
    alias = writer.aliases.find(name, tag)
    assert alias is not None, "it was just written"
    return alias


def _target(alias: Alias) -> Target:
    if alias.canary is None:
        return Target(alias.version.number)
    return Target(alias.version.number, alias.canary.version.number, alias.canary.weight)


def _check_canary(target: Target) -> None:
    if (target.canary_number is None) != (target.weight is None):
        raise InvalidRequest("canary needs both a version and a weight", param="canary")
    if target.weight is not None and not 0 < target.weight < 1:
        raise InvalidRequest(
            f"canary.weight is {target.weight}; it is the canary's share of requests, over 0 and "
            "under 1. To give it all, move the alias to its version",
            param="canary.weight",
        )
    if target.canary_number == target.number:
        raise InvalidRequest("canary.version is the alias's own version", param="canary.version")


def compare(name: str, tag: str, now: Alias | None, expected: int | None) -> None:
    means = 0 if now is None else now.version.number
    if expected is not None and means != expected:
        found = f"means version {means}" if means else "does not exist"
        raise AliasMoved(
            f"{_shown(name, tag)} {found} now, not {expected or 'nothing'}; look at it again "
            "before changing it",
            param="expected_version",
        )


def _no_alias(name: str, tag: str) -> AliasNotFound:
    return AliasNotFound(f"there is no alias {shorten(_shown(name, tag))}")


def _shown(name: str, tag: str) -> str:
    return name if tag == CURRENT_TAG else f"{name}:{tag}"
