"""The host cache: bounded in bytes, the policy's victim first out."""

from dataclasses import dataclass

from server.adapters.host_cache import HostCache


@dataclass(frozen=True)
class Item:
    digest: str
    bytes: int
    load_s: float = 1.0


def test_least_recently_used_goes_first() -> None:
    cache: HostCache[Item] = HostCache(max_bytes=100)
    for digest in "abc":
        cache.put(Item(digest, 30))
    cache.use("a")
    cache.put(Item("d", 30))
    assert set(cache.digests) == {"a", "c", "d"}
    assert (cache.bytes, cache.evictions) == (90, 1)
    cache.check()


def test_looking_is_no_use() -> None:
    cache: HostCache[Item] = HostCache(max_bytes=100)
    for digest in "abc":
        cache.put(Item(digest, 30))
    assert cache.get("a") == Item("a", 30)
    cache.put(Item("d", 30))
    assert (cache.holds("a"), cache.get("a")) == (False, None)


def test_one_that_is_larger_than_the_bound_is_kept_until_another_comes() -> None:
    cache: HostCache[Item] = HostCache(max_bytes=10)
    cache.put(Item("big", 50))
    assert cache.holds("big")
    cache.put(Item("next", 5))
    assert cache.digests == ("next",)
    cache.check()


def test_putting_a_digest_twice_counts_it_once() -> None:
    cache: HostCache[Item] = HostCache(max_bytes=10)
    cache.put(Item("a", 5))
    cache.put(Item("a", 5))
    assert cache.bytes == 5
    cache.check()


def test_what_is_awaited_goes_when_nothing_else_is_left() -> None:
    cache: HostCache[Item] = HostCache(max_bytes=60)
    for digest in "ab":
        cache.put(Item(digest, 30))
    cache.put(Item("c", 30), awaited=frozenset("a"))
    assert set(cache.digests) == {"a", "c"}
    cache.put(Item("d", 30), awaited=frozenset("ac"))
    assert set(cache.digests) == {"c", "d"}
    cache.check()
