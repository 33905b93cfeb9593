"""Between disk, host cache and slots: one read for all who ask, room for who waits, few fills."""

import os
import sys
import threading

import pytest
import torch

from adapters_store.content import AdapterContent
from adapters_store.errors import AdapterNotFound, Conflict
from server.adapters.loading import LOADER_NICENESS
from server.adapters.prefetch import Answer, Prefetcher
from tests.server.adapters.conftest import BYTES, HeldSource, Make, finish


class ThreadsSource:
    """Notes what a loader's thread is like; has no adapter."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.niceness: list[int] = []

    def read(self, digest: str) -> AdapterContent:
        self.threads.append(torch.get_num_threads())
        self.niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        raise AdapterNotFound(f"No adapter has the digest {digest}.")


def test_a_loader_stands_back_for_the_steps(make: Make) -> None:
    source = ThreadsSource()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    residency = make(source=source)
    try:
        residency.request("a" * 64)
        assert set(finish(residency)) == {"a" * 64}
        assert source.threads == [1]
        assert torch.get_num_threads() == 2  # here, as before
    finally:
        torch.set_num_threads(before)
    if sys.platform == "linux":
        mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert source.niceness == [min(19, mine + LOADER_NICENESS)]


def test_requests_and_prefetches_of_one_adapter_read_it_once(
    make: Make, source: HeldSource
) -> None:
    residency = make()
    prefetcher = Prefetcher(residency)
    for number in range(3):
        residency.request("a")
        prefetcher.prefetch(f"slot{number}", "a", "slot")
        prefetcher.prefetch(f"host{number}", "a", "host")
        prefetcher.pin(f"pin{number}", "a")
        assert not residency.prepare("a")
        assert prefetcher.settle() == []
    source.go.set()
    assert finish(residency) == {}
    assert {answer.error for answer in prefetcher.settle()} == {None}
    lease = residency.try_lease("a")
    assert lease is not None
    assert source.reads == {"a": 1}
    assert residency.counts().loads == {"disk": 1, "host": 1}
    assert residency.counts().host_misses == 1


def test_a_failed_read_is_told_to_all_who_asked_and_tried_afresh_for_later_ones(
    make: Make, source: HeldSource
) -> None:
    residency = make()
    prefetcher = Prefetcher(residency)
    source.go.set()
    for again in range(2):
        residency.request("missing")
        prefetcher.prefetch("a", "missing", "slot")
        prefetcher.pin("b", "missing")
        failed = finish(residency)
        answers = prefetcher.fail_loads(failed)
        assert answers == [Answer("a", failed["missing"]), Answer("b", failed["missing"])]
        assert source.reads["missing"] == again + 1
        assert residency.counts().failed_loads == again + 1
        assert not prefetcher.has_work


@pytest.mark.parametrize("eviction", ["lru", "lfu", "cost"])
def test_an_adapter_that_is_waited_for_stays_until_it_has_its_slot(
    make: Make, source: HeldSource, eviction: str
) -> None:
    """Many are read at once into a cache for three; no policy makes who waits start again."""
    residency = make(host_cache_bytes=3 * BYTES, eviction=eviction)
    source.go.set()
    residency.request("a")
    finish(residency, awaited="a")
    for digest in "bcdefgh":
        residency.request(digest)
    finish(residency, awaited="a")
    assert residency.prepare("a")
    assert residency.try_lease("a") is not None
    assert source.reads["a"] == 1
    assert residency.host.evictions == 5


def test_so_many_slots_are_filled_as_are_allowed(make: Make, source: HeldSource) -> None:
    residency = make(slots=4)
    source.go.set()
    for digest in "abcd":
        residency.request(digest)
    finish(residency)
    residency.allow_fills(2)
    assert [residency.prepare(one) and residency.place(one) for one in "abcd"] == [
        True, True, False, False,
    ]  # fmt: skip
    assert residency.prepare("a"), "it is in its slot: nothing to fill"
    residency.allow_fills()
    assert all(residency.prepare(one) and residency.place(one) for one in "abcd")
    assert residency.counts().loads["host"] == 4


def test_a_slots_waiter_that_finds_none_is_no_use_of_the_host_cache(
    make: Make, source: HeldSource
) -> None:
    residency = make(slots=1, eviction="lfu", host_cache_bytes=2 * BYTES)
    source.go.set()
    for digest in "ab":
        residency.request(digest)
        finish(residency)
        residency.try_lease("a")
    for _ in range(10):
        assert residency.try_lease("b") is None
    residency.request("c")
    finish(residency)
    assert set(residency.host.digests) == {"a", "c"}


def test_pins_leave_rows_for_others(make: Make, source: HeldSource) -> None:
    residency = make(slots=4, rows=16)
    prefetcher = Prefetcher(residency)
    source.go.set()
    for digest in "ab":
        prefetcher.pin(digest, digest)
    finish(residency)
    first, second = prefetcher.settle()
    assert first.error is None
    assert isinstance(second.error, Conflict)
    assert "0 of the 16 rows" in second.error.message
    prefetcher.check()
    assert residency.slots.pinned == (first.request_id,)
    assert residency.try_lease("c") is None  # not read yet
    residency.request("c")
    finish(residency)
    assert residency.try_lease("c") is not None
