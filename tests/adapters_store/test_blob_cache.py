import os

import pytest

from adapters_store.blob_cache import BlobCache
from adapters_store.errors import AdapterNotFound
from adapters_store.package import WEIGHTS_NAME, load_package
from tests.adapters_store.builders import put


@pytest.fixture
def cache(tmp_path):
    opened = BlobCache(tmp_path / "cache", max_bytes=1 << 20)
    yield opened
    opened.close()


def kept(cache: BlobCache) -> set[str]:
    return {path.name for path in cache._root.glob("sha256/*/*")}


def size_of_one(cache: BlobCache) -> int:
    folder = cache.find(put(cache))
    assert folder is not None
    return sum(file.stat().st_size for file in folder.iterdir())


def age(cache: BlobCache, digest: str, seconds: int) -> None:
    """Makes a copy's last use lie so far back."""
    folder = cache._folder(digest)
    then = folder.stat().st_mtime - seconds
    os.utime(folder, (then, then))


def test_the_copy_used_least_recently_goes_first(tmp_path, cache):
    size = size_of_one(cache)
    small = BlobCache(tmp_path / "small", max_bytes=3 * size)
    digests = [put(small, float(number)) for number in range(3)]
    for seconds, digest in zip((30, 20, 10), digests, strict=True):
        age(small, digest, seconds)
    assert small.find(digests[0]) is not None
    assert kept(small) == set(digests)
    newest = put(small, 3.0)
    assert kept(small) == {digests[0], digests[2], newest}
    small.close()


def test_one_that_is_larger_than_the_bound_is_kept_while_it_is_the_newest(tmp_path):
    tiny = BlobCache(tmp_path / "tiny", max_bytes=1)
    first = put(tiny, 1.0)
    assert kept(tiny) == {first}
    second = put(tiny, 2.0)
    assert kept(tiny) == {second}
    tiny.close()


def test_a_copy_that_goes_stays_readable_to_whoever_has_it_open(cache):
    digest = put(cache)
    folder = cache.find(digest)
    assert folder is not None
    content = load_package(folder, digest)
    cache.delete(digest)
    assert cache.find(digest) is None
    assert float(content.tensors["layers.0.q_proj.lora_A.weight"].sum()) == 32.0


def test_a_damaged_copy_is_not_found_and_makes_room_for_a_sound_one(cache):
    digest = put(cache)
    weights = cache._folder(digest) / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert cache.find(digest) is None
    assert kept(cache) == set()
    put(cache)
    assert cache.find(digest) == cache._folder(digest)


def test_what_another_process_has_copied_is_found(cache, tmp_path):
    other = BlobCache(tmp_path / "cache", max_bytes=1 << 20)
    digest = put(other)
    assert cache.find(digest) is not None
    assert put(cache) == digest  # as when both had begun to fetch it
    assert kept(cache) == {digest}
    with pytest.raises(AdapterNotFound):
        cache.find("../" * 22)
    other.close()
