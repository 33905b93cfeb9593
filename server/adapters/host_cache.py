"""Adapters laid out for the device, in host memory, bounded in bytes."""

from collections import OrderedDict

from server.adapters.methods.base import HostAdapter


class HostCache:
    """LRU by bytes. One adapter larger than the bound is kept while it is the newest."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, HostAdapter] = OrderedDict()
        self.bytes = 0
        self.evictions = 0

    def get(self, digest: str) -> HostAdapter | None:
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
        return entry

    def put(self, adapter: HostAdapter) -> None:
        """Keeps `adapter`, dropping the least recently used until the bound holds again."""
        if adapter.digest in self._entries:
            return
        self._entries[adapter.digest] = adapter
        self.bytes += adapter.bytes
        while self.bytes > self._max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self.bytes -= dropped.bytes
            self.evictions += 1

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def check(self) -> None:
        """Recounts the bytes. Raises AssertionError on drift."""
        assert self.bytes == sum(entry.bytes for entry in self._entries.values())
