"""From a digest to an adapter laid out in host memory, away from the thread that runs steps.

Here: what a loader is, and the one that uses threads. Not here: the one that is a process
(loader_process.py), who asks and what comes of it (residency.py).
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from threadpoolctl import threadpool_limits

from adapters_store.content import AdapterSource, BaseModel
from server.adapters.methods import method_of
from server.adapters.methods.base import HostAdapter
from server.adapters.slot_rows import SlotLimits

LOADER_THREADS = 2
"""One waits for the disk while the other converts; more would only share the same cores."""

LOADER_NICENESS = 5
"""Added to the loaders' own: of a core that a step keeps busy they get a quarter, and not half."""


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """What adapters are laid out for."""

    base: BaseModel
    limits: SlotLimits
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class LoadedIn:
    """A finished load, and how long it took where it was done."""

    adapter: HostAdapter
    load_s: float

    @property
    def digest(self) -> str:
        return self.adapter.digest

    @property
    def bytes(self) -> int:
        return self.adapter.bytes


class Loader(Protocol):
    """Loads adapters beside the steps."""

    def load(self, digest: str) -> Future[LoadedIn]:
        """Begins to; never waits. The future raises what AdapterSource.read or lay_out raised."""
        ...

    def close(self) -> None:
        """Begins no more loads; the futures of those under way may never end."""
        ...


OpenLoader = Callable[[LoadTarget], Loader]


def load(source: AdapterSource, digest: str, target: LoadTarget) -> LoadedIn:
    """Reads, checks and lays out one version. Raises as AdapterSource.read and lay_out do."""
    started = time.perf_counter()
    content = source.read(digest)
    adapter = method_of(content).lay_out(
        content, target.base, limits=target.limits, dtype=target.dtype
    )
    return LoadedIn(adapter, time.perf_counter() - started)


class LoaderThreads:
    """Loads in threads of this process: simple, but they hold the interpreter's lock by turns."""

    def __init__(self, source: AdapterSource, target: LoadTarget) -> None:
        self._source = source
        self._target = target
        self._threads = ThreadPoolExecutor(
            LOADER_THREADS, thread_name_prefix="adapter-loader", initializer=_stand_back
        )

    def load(self, digest: str) -> Future[LoadedIn]:
        return self._threads.submit(self._load, digest)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, digest: str) -> LoadedIn:
        loaded = load(self._source, digest, self._target)
        if torch.cuda.is_available():
            return LoadedIn(loaded.adapter.pinned(), loaded.load_s)
        return loaded


def _stand_back() -> None:
    """Keeps a loader out of the steps' way: one core, and the steps' threads before it."""
    _use_one_core()
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it, and then all are equal
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + LOADER_NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _use_one_core() -> None:
    """Keeps OpenMP from giving this thread workers of its own.

    They would be more than there are cores; libgomp then puts the step's workers to sleep between
    loops, for good, and a step takes twice as long.
    """
    torch.get_num_threads()  # a thread's first use of torch sets torch's number, over this one
    threadpool_limits(1, user_api="openmp")
