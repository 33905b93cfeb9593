"""Prefetches and pins: answered once, never at others' expense, over when their time is."""

import random

import pytest

from adapters_store.errors import AdapterdError, Conflict, Unavailable
from server.adapters.prefetch import Answer, Prefetcher
from server.adapters.residency import Residency
from server.adapters.slots import SlotLease
from tests.server.adapters.conftest import HeldSource, Make, finish


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def residency(make: Make, source: HeldSource) -> Residency:
    """Three slots, and every adapter at once."""
    source.go.set()
    return make(slots=3)


@pytest.fixture
def prefetcher(residency: Residency, clock: Clock) -> Prefetcher:
    return Prefetcher(residency, clock=clock)


def settled(residency: Residency, prefetcher: Prefetcher) -> list[Answer]:
    finish(residency)
    answers = prefetcher.settle()
    prefetcher.check()
    return answers


def pin(residency: Residency, prefetcher: Prefetcher, digest: str, **rest: float) -> None:
    prefetcher.pin(digest, digest, **rest)
    assert settled(residency, prefetcher) == [Answer(digest)]


def fill_others(residency: Residency, digests: str = "uvwxyz") -> None:
    """Requests come and go."""
    for digest in digests:
        residency.request(digest)
        finish(residency)
        lease = residency.try_lease(digest)
        assert lease is not None
        residency.release(lease)


def test_to_the_host_cache_fills_no_slot(residency: Residency, prefetcher: Prefetcher) -> None:
    prefetcher.prefetch("1", "a", "host")
    assert prefetcher.has_work
    assert settled(residency, prefetcher) == [Answer("1")]
    assert (residency.slots.resident, residency.host.digests) == ((), ("a",))
    assert not prefetcher.has_work
    prefetcher.prefetch("2", "a", "slot")
    assert settled(residency, prefetcher) == [Answer("2")]
    assert residency.slots.resident == ("a",)


def test_what_is_nearer_already_is_near_enough(residency: Residency, prefetcher: Prefetcher):
    pin(residency, prefetcher, "a")
    prefetcher.prefetch("1", "a", "host")
    assert prefetcher.settle() == [Answer("1")]
    assert residency.counts().loads == {"disk": 1, "host": 1}


def test_a_prefetched_adapter_may_go_again_and_a_pinned_one_may_not(
    residency: Residency, prefetcher: Prefetcher
) -> None:
    pin(residency, prefetcher, "a")
    prefetcher.prefetch("b", "b", "slot")
    assert settled(residency, prefetcher) == [Answer("b")]
    fill_others(residency)
    assert residency.slots.holds("a")
    assert not residency.slots.holds("b")


def test_the_last_slot_is_nobodys(residency: Residency, prefetcher: Prefetcher) -> None:
    pin(residency, prefetcher, "a")
    prefetcher.pin("b", "b")  # on its way, and counted already
    with pytest.raises(Conflict, match=r"3 slots, 2 of them pinned.*--max-resident-adapters"):
        prefetcher.pin("c", "c")
    prefetcher.pin("a again", "a")
    assert settled(residency, prefetcher) == [Answer("b"), Answer("a again")]
    prefetcher.unpin("b")
    pin(residency, prefetcher, "c")


def test_a_single_slot_cannot_be_pinned(make: Make) -> None:
    with pytest.raises(Conflict, match="there is 1 slot"):
        Prefetcher(make(slots=1)).pin("a", "a")


def test_a_pin_ends_when_its_time_is_over(
    residency: Residency, prefetcher: Prefetcher, clock: Clock
) -> None:
    pin(residency, prefetcher, "a", ttl_s=10)
    pin(residency, prefetcher, "b")
    assert prefetcher.idle_s() == 10
    assert not prefetcher.has_work
    clock.now += 9.5
    assert prefetcher.settle() == []
    assert set(residency.slots.pinned) == {"a", "b"}
    clock.now += 1
    assert prefetcher.has_work, "there is a pin to end"
    assert prefetcher.settle() == []
    assert residency.slots.pinned == ("b",)
    assert (prefetcher.idle_s(), prefetcher.has_work) == (None, False)
    fill_others(residency)
    assert not residency.slots.holds("a")


def test_pinning_again_begins_the_time_anew(
    residency: Residency, prefetcher: Prefetcher, clock: Clock
) -> None:
    pin(residency, prefetcher, "a", ttl_s=10)
    prefetcher.pin("again", "a", 10)
    clock.now += 11  # over before the second is looked at
    assert prefetcher.settle() == [Answer("again")]
    assert prefetcher.idle_s() == 10
    pin(residency, prefetcher, "a")
    assert prefetcher.idle_s() is None
    prefetcher.check()


def test_unpinned_on_its_way_it_comes_without_a_pin(
    residency: Residency, prefetcher: Prefetcher
) -> None:
    prefetcher.pin("1", "a")
    prefetcher.unpin("a")
    assert settled(residency, prefetcher) == [Answer("1")]
    assert residency.slots.resident == ("a",)
    assert residency.slots.pinned == ()


@pytest.mark.parametrize("pins", [True, False])
def test_where_every_slot_is_in_use_it_says_so_and_takes_none(
    residency: Residency, prefetcher: Prefetcher, pins: bool
) -> None:
    for digest in "xyz":
        residency.request(digest)
        finish(residency)
        assert residency.try_lease(digest) is not None
    if pins:
        prefetcher.pin("1", "a")
    else:
        prefetcher.prefetch("1", "a", "slot")
    (answer,) = settled(residency, prefetcher)
    assert isinstance(answer.error, Unavailable)
    assert "all 3 slots" in answer.error.message
    assert not prefetcher.has_work
    assert set(residency.slots.resident) == set("xyz")
    pin(residency, prefetcher, "x")  # in its slot already


def test_fills_that_requests_have_used_up_are_waited_for(
    residency: Residency, prefetcher: Prefetcher
) -> None:
    for name in "ab":
        prefetcher.prefetch(name, name, "slot")
    residency.allow_fills(0)
    assert settled(residency, prefetcher) == []
    assert prefetcher.awaited == {"a", "b"}
    residency.allow_fills(1)
    assert prefetcher.settle() == [Answer("a")]
    residency.allow_fills(1)
    assert prefetcher.settle() == [Answer("b")]


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_answer_each_once_and_leave_a_slot(
    seed: int, make: Make, source: HeldSource
) -> None:
    draw, clock = random.Random(seed), Clock()
    source.go.set()
    residency = make(slots=draw.randint(2, 4), host_cache_bytes=1000)
    prefetcher = Prefetcher(residency, clock=clock)
    asked: list[str] = []
    answered: list[Answer] = []
    leases: list[SlotLease] = []
    for number in range(150):
        digest = draw.choice([*"abcdef", "missing"])
        action = draw.random()
        if action < 0.3:
            asked.append(str(number))
            prefetcher.prefetch(str(number), digest, draw.choice(["slot", "host"]))
        elif action < 0.5:
            try:
                prefetcher.pin(str(number), digest, draw.choice([None, 5.0]))
                asked.append(str(number))
            except Conflict:
                pass
        elif action < 0.6:
            prefetcher.unpin(digest)
        elif residency.prepare(digest) and (lease := residency.try_lease(digest)):
            leases.append(lease)
        if leases and draw.random() < 0.5:
            residency.release(leases.pop(draw.randrange(len(leases))))
        clock.now += draw.random()
        failed: dict[str, AdapterdError] = residency.collect(lambda: prefetcher.awaited)
        answered += prefetcher.fail_loads(failed)
        answered += prefetcher.settle()
        prefetcher.check()
        residency.check()
    while prefetcher.awaited:
        answered += prefetcher.fail_loads(finish(residency)) + prefetcher.settle()
    assert sorted(answer.request_id for answer in answered) == sorted(asked)
