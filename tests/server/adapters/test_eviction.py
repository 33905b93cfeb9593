"""Policies: who is named as the victim after which history."""

import random

import pytest

from server.adapters.eviction import AGE_AFTER, AgedCounts, EvictionPolicy, policy_named
from server.adapters.host_cache import HostCache
from server.adapters.slots import SlotLease, SlotTable
from tests.server.adapters.test_host_cache import Item

NAMES = ("lru", "lfu", "cost")


def filled(name: str, digests: str = "abc", *, size: int = 1, load_s: float = 1.0):
    policy = policy_named(name)
    for digest in digests:
        policy.insert(digest, size=size, load_s=load_s)
    return policy


def anyone(digest: str) -> bool:
    return True


def evict(policy: EvictionPolicy) -> str:
    victim = policy.victim(anyone)
    assert victim is not None
    policy.remove(victim)
    return victim


@pytest.mark.parametrize("name", NAMES)
def test_of_equals_the_least_recently_used_goes(name: str) -> None:
    policy = filled(name)
    for digest in "bac":
        policy.use(digest)
    assert [evict(policy) for _ in "abc"] == ["b", "a", "c"]


@pytest.mark.parametrize("name", NAMES)
def test_only_those_that_may_go_are_named_and_naming_changes_nothing(name: str) -> None:
    policy = filled(name)
    assert policy.victim(lambda digest: digest == "c") == "c"
    assert policy.victim(lambda digest: False) is None
    assert policy.victim(anyone) == policy.victim(anyone) == "a"
    assert policy.digests() == {"a", "b", "c"}


@pytest.mark.parametrize("name", NAMES)
def test_a_tier_that_uses_or_removes_a_stranger_is_told(name: str) -> None:
    policy = filled(name)
    policy.remove("a")
    with pytest.raises(KeyError):
        policy.use("a")
    with pytest.raises(KeyError):
        policy.remove("a")


def test_lru_looks_at_recency_alone() -> None:
    policy = filled("lru")
    for _ in range(5):
        policy.use("a")
    for digest in "bc":
        policy.use(digest)
    assert evict(policy) == "a"


@pytest.mark.parametrize("name", ["lfu", "cost"])
def test_often_used_outlives_recently_used(name: str) -> None:
    policy = filled(name)
    for digest in "aaabbc":
        policy.use(digest)
    assert [evict(policy) for _ in "abc"] == ["c", "b", "a"]


@pytest.mark.parametrize("name", ["lfu", "cost"])
def test_yesterdays_favourite_does_not_stay_for_ever(name: str) -> None:
    """It is asked for a thousand times, then never again while others come and are used."""
    policy = filled(name)
    for _ in range(1000):
        policy.use("a")
    for number in range(1000):
        gone = evict(policy)
        if gone == "a":
            break
        policy.insert(f"n{number}", size=1, load_s=1.0)
        policy.use(f"n{number}")
    else:
        pytest.fail("the favourite outlived a thousand others")
    assert number > 5, "one newcomer was enough"


def test_counts_are_halved_after_so_many_uses_for_each() -> None:
    counts = AgedCounts()
    for digest in "ab":
        counts.insert(digest)
    for _ in range(2 * AGE_AFTER - 3):
        counts.use("a")
    assert (counts["a"], counts["b"]) == (2 * AGE_AFTER - 2, 1)
    counts.use("a")
    assert (counts["a"], counts["b"]) == (AGE_AFTER - 1, 0)


def test_cost_gives_up_what_is_large_for_the_time_it_takes_to_load() -> None:
    policy = policy_named("cost")
    policy.insert("slow", size=10, load_s=2.0)
    policy.insert("large", size=100, load_s=2.0)
    policy.insert("fast", size=10, load_s=1.0)
    assert [evict(policy) for _ in range(3)] == ["large", "fast", "slow"]


def test_costs_clock_lets_newcomers_pass_what_is_dear_but_unused() -> None:
    """GreedyDual: each that goes lifts the clock, until the dear one is the lowest."""
    policy = policy_named("cost")
    policy.insert("dear", size=1, load_s=5.5)
    gone = []
    for number in range(10):
        policy.insert(f"cheap{number}", size=1, load_s=1.0)
        gone.append(evict(policy))
    assert gone[:5] == [f"cheap{number}" for number in range(5)]
    assert "dear" in gone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(10))
def test_tiers_stay_within_bounds_and_leases_and_pins_hold(name: str, seed: int) -> None:
    draw = random.Random(seed)
    slots = SlotTable(draw.randint(2, 6), 8 * draw.randint(4, 12), policy_named(name))
    host: HostCache[Item] = HostCache(100, policy_named(name))
    held: list[SlotLease] = []
    for _ in range(500):
        digest = f"d{draw.randrange(12)}"
        action = draw.random()
        if held and action < 0.4:
            slots.release(held.pop(draw.randrange(len(held))))
        elif action < 0.5:
            slots.unpin(digest)
        elif slots.holds(digest):
            held.append(slots.lease(digest))
            if action > 0.9 and len(slots.pinned) < slots.capacity - 1:
                slots.pin(digest)
        else:
            kept = {lease.digest for lease in held} | set(slots.pinned)
            awaited = frozenset({f"d{draw.randrange(12)}"})
            host.put(Item(digest, draw.randint(1, 60), draw.random()), awaited)
            if slots.assign(digest, draw.choice([4, 8, 20]), load_s=draw.random()) is not None:
                host.use(digest)
            assert kept <= set(slots.resident)
            assert digest in host.digests
            assert host.bytes <= 100 or len(host.digests) == 1
        slots.check()
        host.check()
