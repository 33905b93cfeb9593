"""Makes adapters resident: disk → host cache by a loader, host cache → slot between steps.

The engine's thread calls everything here.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Set
from concurrent.futures import Future, wait
from dataclasses import dataclass

from adapters_store.errors import AdapterdError, AdapterLoadFailed
from server.adapters.eviction import EvictionName, policy_named
from server.adapters.host_cache import HostCache
from server.adapters.loading import LoadedIn, Loader
from server.adapters.methods.base import BoundMethod, HostAdapter
from server.adapters.slot_rows import SlotLimits
from server.adapters.slots import SlotLease, SlotPlace, SlotTable


@dataclass(frozen=True, slots=True)
class ResidencyCounts:
    """Totals since the start."""

    slot_hits: int
    slot_misses: int
    slot_evictions: int
    host_hits: int
    host_misses: int
    host_evictions: int
    failed_loads: int
    loads: dict[str, int]  # by tier left: "disk", "host"
    load_s: dict[str, float]


class Residency:
    """Answers one question for the scheduler: may this version run now?

    Must stay true: a digest is read by at most one thread at a time, however many ask; a failed
    read is told to those who asked for it before it failed, and tried afresh for later ones.
    """

    def __init__(
        self,
        loader: Loader,
        bound: dict[str, BoundMethod],
        *,
        limits: SlotLimits,
        host_cache_bytes: int,
        eviction: EvictionName = "lru",
    ) -> None:
        self._loader = loader
        self._bound = bound
        self.slots = SlotTable(limits.slots, limits.rows, policy_named(eviction))
        self.host: HostCache[LoadedIn] = HostCache(host_cache_bytes, policy_named(eviction))
        self._fills_left = math.inf
        self._ranks = [0] * limits.slots
        self._reading: dict[str, Future[LoadedIn]] = {}
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._load_times: dict[str, dict[str, float]] = {}

    @property
    def ranks(self) -> list[int]:
        """Of the adapter in each slot; a free slot has its last one's, or 0."""
        return self._ranks

    def request(self, digest: str) -> None:
        """Starts to read `digest` unless it is at hand or under way. Never waits."""
        if self.slots.holds(digest):
            self._counts["slot_hits"] += 1
            return
        self._counts["slot_misses"] += 1
        if self.host.holds(digest) or digest in self._reading:
            self._counts["host_hits"] += 1
            return
        self._counts["host_misses"] += 1
        self._read(digest)

    def collect(self, awaited: Callable[[], Set[str]] = frozenset) -> dict[str, AdapterdError]:
        """Takes in the reads that have ended; returns the failed ones with their causes.

        `awaited`, called only if there are any, says which digests somebody waits for: they make
        room in the host cache last, for else they might be read for ever and run never.
        """
        failed: dict[str, AdapterdError] = {}
        ended = [digest for digest, future in self._reading.items() if future.done()]
        wanted = awaited() if ended else frozenset[str]()
        for digest in ended:
            future = self._reading.pop(digest)
            self._counts["failed_loads"] += future.exception() is not None
            try:
                loaded = future.result()
            except AdapterdError as error:
                failed[digest] = error
            except Exception as error:  # the loader's own fault must not end the engine
                failed[digest] = AdapterLoadFailed(
                    f"adapter {digest[:12]} could not be read: {type(error).__name__}: {error}"
                )
            else:
                self.host.put(loaded, wanted)
                self._counts["load_disk"] += 1
                self._seconds["disk"] += loaded.load_s
                self._load_times[digest] = {"disk": loaded.load_s}
        return failed

    def allow_fills(self, most: float = math.inf) -> None:
        """How many slots may be filled until this is called again: each holds up the next step."""
        self._fills_left = most

    def fetch(self, digest: str) -> bool:
        """Whether it is in memory. If not, makes sure that it is being read.

        It may have been read before and dropped again, from a host cache smaller than the queue.
        """
        if self.slots.holds(digest) or self.host.holds(digest):
            return True
        if digest not in self._reading:
            self._read(digest)
        return False

    def prepare(self, digest: str) -> bool:
        """Whether only a slot is missing, which may be filled now; fetches it if more is."""
        return self.fetch(digest) and (self.slots.holds(digest) or self._fills_left > 0)

    def place(self, digest: str) -> bool:
        """Whether it is in a slot now, filling one from the host cache if needed.

        False when leased and pinned slots leave no room for it, or `prepare` has not said True yet.
        """
        if self.slots.holds(digest):
            return True
        loaded = self.host.get(digest)
        if loaded is None:
            return False
        place = self.slots.assign(digest, loaded.adapter.rank, load_s=loaded.load_s)
        if place is None:
            return False
        self.host.use(digest)
        self._fill(place, loaded.adapter)
        return True

    def try_lease(self, digest: str) -> SlotLease | None:
        """A lease on the slot that holds `digest`, or that `place` finds for it."""
        return self.slots.lease(digest) if self.place(digest) else None

    def release(self, lease: SlotLease) -> None:
        self.slots.release(lease)

    def wait(self, timeout_s: float) -> None:
        """Waits until some read ends, or the time is over."""
        if self._reading:
            wait(self._reading.values(), timeout_s, return_when="FIRST_COMPLETED")

    def counts(self) -> ResidencyCounts:
        return ResidencyCounts(
            slot_hits=self._counts["slot_hits"],
            slot_misses=self._counts["slot_misses"],
            slot_evictions=self.slots.evictions,
            host_hits=self._counts["host_hits"],
            host_misses=self._counts["host_misses"],
            host_evictions=self.host.evictions,
            failed_loads=self._counts["failed_loads"],
            loads={"disk": self._counts["load_disk"], "host": self._counts["load_host"]},
            load_s={"disk": self._seconds["disk"], "host": self._seconds["host"]},
        )

    def load_times(self) -> dict[str, dict[str, float]]:
        """Seconds that each adapter at hand took last, by tier left: "disk", "host"."""
        at_hand = {*self.host.digests, *self.slots.resident}
        self._load_times = {d: times for d, times in self._load_times.items() if d in at_hand}
        return self._load_times.copy()

    def check(self) -> None:
        """Recounts slots and host cache. Raises AssertionError on drift."""
        self.slots.check()
        self.host.check()

    def close(self) -> None:
        self._loader.close()

    def _fill(self, place: SlotPlace, adapter: HostAdapter) -> None:
        started = time.perf_counter()
        for kind, bound in self._bound.items():
            if kind == adapter.kind:
                bound.write(place, adapter)
            else:
                bound.clear(place)
        self._ranks[place.slot] = adapter.rank
        self._fills_left -= 1
        self._counts["load_host"] += 1
        seconds = time.perf_counter() - started
        self._seconds["host"] += seconds
        before = self._load_times.get(adapter.digest, {})
        self._load_times[adapter.digest] = before | {"host": seconds}

    def _read(self, digest: str) -> None:
        self._reading[digest] = self._loader.load(digest)
