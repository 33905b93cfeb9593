"""Makes adapters resident: disk → host cache in a thread, host cache → slot between steps.

The engine's thread calls everything here; only `_load` runs elsewhere, and it touches nothing
but its own result.
"""

import time
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits

from adapters_store.content import AdapterSource, BaseModel
from adapters_store.errors import AdapterdError, AdapterLoadFailed
from server.adapters.host_cache import HostCache
from server.adapters.methods import method_of
from server.adapters.methods.base import BoundMethod, HostAdapter
from server.adapters.slot_rows import SlotLimits
from server.adapters.slots import SlotLease, SlotPlace, SlotTable

LOADER_THREADS = 2


@dataclass(frozen=True, slots=True)
class LoadedIn:
    """A finished read, and how long it took in its thread."""

    adapter: HostAdapter
    seconds: float


@dataclass(frozen=True, slots=True)
class ResidencyCounts:
    """Totals since the start."""

    slot_hits: int
    slot_misses: int
    slot_evictions: int
    host_hits: int
    host_misses: int
    host_evictions: int
    loads: dict[str, int]  # by tier left: "disk", "host"
    load_s: dict[str, float]


class Residency:
    """Answers one question for the scheduler: may this version run now?

    Must stay true: a digest is read by at most one thread at a time, however many ask; a failed
    read is told to those who asked for it before it failed, and tried afresh for later ones.
    """

    def __init__(
        self,
        source: AdapterSource,
        base: BaseModel,
        bound: dict[str, BoundMethod],
        *,
        limits: SlotLimits,
        dtype: torch.dtype,
        host_cache_bytes: int,
    ) -> None:
        self._source = source
        self._base = base
        self._bound = bound
        self._limits = limits
        self._dtype = dtype
        self.slots = SlotTable(limits.slots, limits.rows)
        self.host = HostCache(host_cache_bytes)
        self._ranks = [0] * limits.slots
        self._reading: dict[str, Future[LoadedIn]] = {}
        self._threads = ThreadPoolExecutor(
            LOADER_THREADS, thread_name_prefix="adapter-loader", initializer=_use_one_core
        )
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

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
        if self.host.get(digest) is not None or digest in self._reading:
            self._counts["host_hits"] += 1
            return
        self._counts["host_misses"] += 1
        self._read(digest)

    def collect(self) -> dict[str, AdapterdError]:
        """Takes in the reads that have ended; returns the failed ones with their causes."""
        failed: dict[str, AdapterdError] = {}
        for digest in [d for d, future in self._reading.items() if future.done()]:
            future = self._reading.pop(digest)
            try:
                loaded = future.result()
            except AdapterdError as error:
                failed[digest] = error
            except Exception as error:  # the loader's own fault must not end the engine
                failed[digest] = AdapterLoadFailed(
                    f"adapter {digest[:12]} could not be read: {type(error).__name__}: {error}"
                )
            else:
                self.host.put(loaded.adapter)
                self._counts["load_disk"] += 1
                self._seconds["disk"] += loaded.seconds
        return failed

    def prepare(self, digest: str) -> bool:
        """Whether nothing but a slot is missing. If more is, makes sure that it is being read.

        It may have been read before and dropped again, from a host cache smaller than the queue.
        """
        if self.slots.holds(digest) or self.host.get(digest) is not None:
            return True
        if digest not in self._reading:
            self._read(digest)
        return False

    def try_lease(self, digest: str) -> SlotLease | None:
        """A lease on the slot that holds `digest`, filling one from the host cache if needed.

        None when leased slots leave no room for it, or `prepare` has not said True yet.
        """
        if not self.slots.holds(digest):
            adapter = self.host.get(digest)
            place = None if adapter is None else self.slots.assign(digest, adapter.rank)
            if adapter is None or place is None:
                return None
            self._fill(place, adapter)
        return self.slots.lease(digest)

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
            loads={"disk": self._counts["load_disk"], "host": self._counts["load_host"]},
            load_s={"disk": self._seconds["disk"], "host": self._seconds["host"]},
        )

    def check(self) -> None:
        """Recounts slots and host cache. Raises AssertionError on drift."""
        self.slots.check()
        self.host.check()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fill(self, place: SlotPlace, adapter: HostAdapter) -> None:
        started = time.perf_counter()
        for kind, bound in self._bound.items():
            if kind == adapter.kind:
                bound.write(place, adapter)
            else:
                bound.clear(place)
        self._ranks[place.slot] = adapter.rank
        self._counts["load_host"] += 1
        self._seconds["host"] += time.perf_counter() - started

    def _read(self, digest: str) -> None:
        self._reading[digest] = self._threads.submit(self._load, digest)

    def _load(self, digest: str) -> LoadedIn:
        started = time.perf_counter()
        content = self._source.read(digest)
        adapter = method_of(content).lay_out(
            content, self._base, limits=self._limits, dtype=self._dtype
        )
        return LoadedIn(adapter, time.perf_counter() - started)


def _use_one_core() -> None:
    """Keeps OpenMP from giving this thread workers of its own.

    They would be more than there are cores; libgomp then puts the step's workers to sleep between
    loops, for good, and a step takes twice as long.
    """
    torch.get_num_threads()  # a thread's first use of torch sets torch's number, over this one
    threadpool_limits(1, user_api="openmp")
