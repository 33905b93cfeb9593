"""The paged KV cache: which blocks are whose, and the tensors they stand for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine import mapped_memory

NULL_BLOCK = 0
"""Never handed out and always zero: what padding in a block table points to.

Padding is masked, but a masked NaN still spreads through a sum; zeros cannot.
"""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps per token."""

    kv_heads: int
    key_dim: int
    value_dim: int


class BlockPool:
    """Hands out block numbers. Every block is free, and wiped, or taken once.

    `wipe` zeroes blocks as they come back: the unused end of a block is masked for whoever takes
    it next, and a masked NaN would spread all the same.
    """

    def __init__(self, blocks: int, wipe: Callable[[list[int]], None]) -> None:
        if blocks < 2:
            raise ValueError("a block pool needs the null block and at least one more")
        self._wipe = wipe
        self.total = blocks - 1  # without the null block
        self._free = list(range(blocks - 1, NULL_BLOCK, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks. Raises ValueError if fewer are free: the caller looks first."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        if blocks:
            self._wipe(blocks)
        self._free.extend(blocks)

    def check(self, taken: list[int]) -> None:
        """Recounts: `taken` are all blocks in use, each once. Raises AssertionError on drift."""
        everything = sorted(self._free + taken)
        assert everything == list(range(1, self.total + 1)), "a block is lost or has two owners"


class KVCache:
    """Keys and values of every layer in blocks; written and read by the attention function."""

    def __init__(
        self,
        layers: dict[int, LayerShape],
        *,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        count = blocks * self.bytes_per_block(layers, block_size, dtype) // dtype.itemsize
        if device.type == "cpu":
            self._memory = mapped_memory.zeros(count, dtype)
        else:
            self._memory = torch.zeros(count, dtype=dtype, device=device)
        left = self._memory
        for index, shape in layers.items():
            for tensors, dim in ((self._keys, shape.key_dim), (self._values, shape.value_dim)):
                place = (blocks, block_size, shape.kv_heads, dim)
                mine, left = left.tensor_split((math.prod(place),))
                tensors[index] = mine.view(place)

    def touch(self) -> None:
        """Sees to it in the background that all of its memory is there."""
        if self._memory.device.type == "cpu":
            mapped_memory.touch_beside(self._memory)

    @staticmethod
    def bytes_per_block(layers: dict[int, LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """What one block takes over all layers."""
        per_token = sum(s.kv_heads * (s.key_dim + s.value_dim) for s in layers.values())
        return per_token * block_size * dtype.itemsize

    def tensors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [blocks, block_size, kv_heads, dim]; the native kernels use them."""
        return self._keys[layer], self._values[layer]

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Puts keys [tokens, kv_heads, key_dim] and values at `places` [tokens] int64.

        A place is block · block_size + offset.
        """
        self._keys[layer].flatten(0, 1).index_copy_(0, places, keys)
        self._values[layer].flatten(0, 1).index_copy_(0, places, values)

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, blocks · block_size, kv_heads, dim] of block tables.

        tables [sequences, blocks] int64, padded with NULL_BLOCK. Copies.
        """
        flat = tables.flatten()
        keys = self._keys[layer].index_select(0, flat)
        values = self._values[layer].index_select(0, flat)
        shape = (tables.shape[0], tables.shape[1] * self.block_size)
        return keys.view(*shape, *keys.shape[2:]), values.view(*shape, *values.shape[2:])

    def wipe(self, blocks: list[int]) -> None:
        """Zeroes blocks."""
        index = torch.tensor(blocks, device=next(iter(self._keys.values())).device)
        for tensor in (*self._keys.values(), *self._values.values()):
            tensor[index] = 0
