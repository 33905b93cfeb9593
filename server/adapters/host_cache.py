"""Adapters laid out for the device, in host memory, bounded in bytes."""

from collections.abc import Set
from typing import Generic, Protocol, TypeVar

from server.adapters.eviction import EvictionPolicy, Lru


class Cacheable(Protocol):
    """What the cache needs to know of what it keeps."""

    @property
    def digest(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    @property
    def load_s(self) -> float:
        """How long it took to read and lay out."""
        ...


Item = TypeVar("Item", bound=Cacheable)


class HostCache(Generic[Item]):
    """Bounded by bytes; `policy` says who goes. The newest is kept, however large it is."""

    def __init__(self, max_bytes: int, policy: EvictionPolicy | None = None) -> None:
        """`policy`: one of its own; None for Lru."""
        self._max_bytes = max_bytes
        self._policy = Lru() if policy is None else policy
        self._entries: dict[str, Item] = {}
        self.bytes = 0
        self.evictions = 0

    def holds(self, digest: str) -> bool:
        return digest in self._entries

    def get(self, digest: str) -> Item | None:
        """Looks, which is no use."""
        return self._entries.get(digest)

    def use(self, digest: str) -> None:
        """`digest` was copied to a slot. Raises KeyError if it is not here."""
        self._policy.use(digest)

    def put(self, item: Item, awaited: Set[str] = frozenset()) -> None:
        """Keeps `item`, dropping others until the bound holds again.

        Those in `awaited` go only when nobody else is left: they would have to be read again.
        """
        if item.digest in self._entries:
            return
        self._entries[item.digest] = item
        self._policy.insert(item.digest, size=item.bytes, load_s=item.load_s)
        self.bytes += item.bytes
        while self.bytes > self._max_bytes and (victim := self._victim(item.digest, awaited)):
            self._policy.remove(victim)
            self.bytes -= self._entries.pop(victim).bytes
            self.evictions += 1

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def check(self) -> None:
        """Recounts the bytes. Raises AssertionError on drift."""
        assert self.bytes == sum(entry.bytes for entry in self._entries.values())
        assert self._policy.digests() == self._entries.keys(), "the policy knows others"

    def _victim(self, newest: str, awaited: Set[str]) -> str | None:
        """None if only the newest is left."""
        unwanted = self._policy.victim(lambda one: one != newest and one not in awaited)
        return unwanted or self._policy.victim(lambda one: one != newest)
