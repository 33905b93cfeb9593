"""The host cache: bounded in bytes, least recently used first out."""

from server.adapters.host_cache import HostCache
from server.adapters.methods.base import HostAdapter


def adapter(digest: str, size: int) -> HostAdapter:
    return HostAdapter(digest=digest, kind="lora", rank=1, bytes=size, layout={})


def test_least_recently_used_goes_first() -> None:
    cache = HostCache(max_bytes=100)
    for digest in "abc":
        cache.put(adapter(digest, 30))
    assert cache.get("a") is not None
    cache.put(adapter("d", 30))
    assert cache.digests == ("c", "a", "d")
    assert (cache.bytes, cache.evictions) == (90, 1)
    cache.check()


def test_one_that_is_larger_than_the_bound_is_kept_until_another_comes() -> None:
    cache = HostCache(max_bytes=10)
    cache.put(adapter("big", 50))
    assert cache.get("big") is not None
    cache.put(adapter("next", 5))
    assert cache.digests == ("next",)
    cache.check()


def test_putting_a_digest_twice_counts_it_once() -> None:
    cache = HostCache(max_bytes=10)
    cache.put(adapter("a", 5))
    cache.put(adapter("a", 5))
    assert cache.bytes == 5
    cache.check()
