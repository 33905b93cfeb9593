"""Blocks: owned once, wiped when they come back; reads give what was written."""

import pytest
import torch

from server.engine.kv_cache import NULL_BLOCK, BlockPool, KVCache, LayerShape


def test_blocks_are_free_or_owned_once() -> None:
    wiped: list[int] = []
    pool = BlockPool(5, wiped.extend)
    taken = pool.take(3)
    assert NULL_BLOCK not in taken
    assert (pool.total, pool.used, pool.free) == (4, 3, 1)
    pool.check(taken)
    with pytest.raises(ValueError, match="2 blocks wanted, 1 free"):
        pool.take(2)
    pool.give_back(taken[:2])
    assert wiped == taken[:2]
    pool.check(taken[2:])
    with pytest.raises(AssertionError, match="lost or has two owners"):
        pool.check(taken)


def test_what_is_written_is_read_and_wiped() -> None:
    shape = LayerShape(kv_heads=2, key_dim=3, value_dim=4)
    cache = KVCache(
        {0: shape}, blocks=4, block_size=2, dtype=torch.float32, device=torch.device("cpu")
    )
    keys, values = torch.randn(3, 2, 3), torch.randn(3, 2, 4)
    cache.write(0, torch.tensor([6, 7, 2]), keys, values)  # all of block 3, then half of block 1
    k, v = cache.read(0, torch.tensor([[3, 1], [NULL_BLOCK, 3]]))
    assert k.shape == (2, 4, 2, 3)
    assert torch.equal(k[0, :3], keys)
    assert torch.equal(v[0, :3], values)
    assert torch.equal(v[1, 2:], values[:2])
    assert not k[0, 3].any()
    assert not k[1, :2].any()
    cache.wipe([3])
    k, _ = cache.read(0, torch.tensor([[3, 1]]))
    assert not k[0, :2].any()
    assert torch.equal(k[0, 2], keys[2])


def test_bytes_per_block() -> None:
    layers = {0: LayerShape(2, 3, 4), 1: LayerShape(1, 8, 8)}
    assert KVCache.bytes_per_block(layers, 16, torch.bfloat16) == (2 * 7 + 16) * 16 * 2
