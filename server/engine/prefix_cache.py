"""Finished KV blocks, kept for whoever begins with the same tokens under the same version.

Here: what a block's content is called (root_hash, block_hash) and PrefixCache, which alone fills
block tables. Not here: tensors, and the choice of who runs.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import sha256

from server.engine.kv_cache import BlockPool
from server.engine.sequence import Sequence

EVICTED_SHARE = 64
"""At least one in so many of all blocks are evicted together: wiping many costs as one does."""


def root_hash(base: str, adapter: str | None, salt: str) -> bytes:
    """What a chain of blocks starts from: who computed it (digests), and whom it is kept apart for.

    Each value stands behind its tag and both behind their lengths, so no two identities read the
    same; the base alone has a tag of its own rather than an adapter with an empty name.
    """
    who = (b"adapter", adapter.encode()) if adapter is not None else (b"base alone", b"")
    return _sha256(b"kv root", b"base", base.encode(), *who, b"salt", salt.encode())


def block_hash(parent: bytes, tokens: list[int]) -> bytes:
    """What a full block is called, `parent` being the hash of the one before it, or the root."""
    return _sha256(b"kv block", parent, struct.pack(f"<{len(tokens)}I", *tokens))


def _sha256(*parts: bytes) -> bytes:
    return sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


class PrefixCache:
    """Lends the pool's blocks to sequences, and keeps full ones for those that begin alike.

    Must stay true: a block is free in the pool, held by as many sequences as are counted, or idle:
    cached and held by none. What is cached is full, its step succeeded, and nobody writes to it
    again; a block that may still be written is held by one sequence and not cached. Who holds a
    cached block holds those before it, so a chain is always evicted from its end.
    """

    def __init__(self, pool: BlockPool, block_size: int, base: str, *, enabled: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._base = base  # digest
        self._enabled = enabled
        self._holders = [0] * (pool.total + 1)  # of each block
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}  # the same, the other way round
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently held first
        self._evicted_together = max(1, pool.total // EVICTED_SHARE)
        self.queried_tokens = 0  # of prompts that were looked up, each once
        self.hit_tokens = 0  # of those, found

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and cached ones that nobody holds."""
        return self._pool.free + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self._pool.total - self.available

    def fits(self, sequence: Sequence, tokens: int) -> bool:
        """Whether a sequence that holds nothing could be given its first `tokens` tokens' blocks.

        Those that others hold already would cost nothing.
        """
        missing = sequence.blocks_for(tokens, self._block_size)
        if missing <= self.available:
            return True
        held = sum(1 for block in self._find(sequence) if self._holders[block])
        return missing - held <= self.available

    def begin(self, sequence: Sequence) -> None:
        """Gives a sequence that holds nothing what is cached of its beginning."""
        found = self._find(sequence)
        for block in found:
            self._hold(block)
        sequence.block_table = found
        sequence.cached_blocks = len(found)
        sequence.computed = len(found) * self._block_size
        if sequence.cached_tokens is None:  # not again after pre-emption, when it finds its own
            sequence.cached_tokens = sequence.computed
            self.queried_tokens += len(sequence.tokens) if self._enabled else 0
            self.hit_tokens += sequence.computed

    def extend(self, sequence: Sequence, tokens: int) -> None:
        """Gives it blocks to write up to its first `tokens` tokens.

        Raises ValueError if fewer are available: the caller looks first.
        """
        missing = sequence.blocks_for(tokens, self._block_size)
        if missing > self._pool.free:
            self._evict(missing - self._pool.free)
        taken = self._pool.take(missing)
        for block in taken:
            self._holders[block] = 1
        sequence.block_table += taken

    def keep(self, sequence: Sequence) -> None:
        """Caches the blocks that are full now. Only after the step that filled them succeeded.

        Where another sequence filled a block alike meanwhile, that one is held instead.
        """
        full = sequence.computed // self._block_size
        if full == sequence.cached_blocks or not self._enabled:
            return
        doubles = []
        for index in range(sequence.cached_blocks, full):
            block, key = sequence.block_table[index], self._hash(sequence, index)
            kept = self._block_of.setdefault(key, block)
            if kept == block:
                self._hash_of[block] = key
            else:
                self._hold(kept)
                sequence.block_table[index] = kept
                doubles.append(block)
        sequence.cached_blocks = full
        self._drop(doubles)

    def release(self, sequence: Sequence) -> None:
        """Takes back all its blocks; those full and computed stay cached, the first the longest."""
        self.keep(sequence)
        self._take_back(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Takes back all its blocks and keeps none: what they hold is not to be used."""
        for block in sequence.block_table[: sequence.cached_blocks]:
            self._forget(block)
        self._take_back(sequence)

    def check(self, sequences: list[Sequence]) -> None:
        """Recounts everything; `sequences` are all that are not over. Raises AssertionError."""
        holders = [0] * (self._pool.total + 1)
        for sequence in sequences:
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            for block in sequence.block_table:
                holders[block] += 1
        assert holders == self._holders, "counts of holders drifted"
        held = [block for block, count in enumerate(holders) if count]
        self._pool.check(held + list(self._idle))
        assert self._block_of == {key: block for block, key in self._hash_of.items()}
        assert len(self._block_of) == len(self._hash_of), "two blocks have one hash"
        assert self._idle.keys() == self._hash_of.keys() - set(held), "a cached block is lost"
        for sequence in sequences:
            full = sequence.computed // self._block_size
            assert sequence.cached_blocks == (full if self._enabled else 0)
            for index in range(sequence.cached_blocks):
                key = sequence.block_hashes[index]
                found = self._hash_of.get(sequence.block_table[index], key)  # unless discarded
                assert found == key, "a block is held under another beginning"
            for block in sequence.block_table[full:]:
                assert holders[block] == 1, "a block that may be written is shared"
                assert block not in self._hash_of, "a block that may be written is cached"

    def _find(self, sequence: Sequence) -> list[int]:
        """The cached blocks of its beginning; never its last token's, whose logits are wanted."""
        found: list[int] = []
        if not self._enabled:
            return found
        for index in range((len(sequence.tokens) - 1) // self._block_size):
            block = self._block_of.get(self._hash(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        """Of its block `index`, the ones before having been asked for; each is computed once."""
        known = sequence.block_hashes
        if index == len(known):
            parent = known[-1] if known else self._root(sequence)
            start = index * self._block_size
            known.append(block_hash(parent, sequence.tokens[start : start + self._block_size]))
        return known[index]

    def _root(self, sequence: Sequence) -> bytes:
        return root_hash(self._base, sequence.adapter, sequence.cache_salt)

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._holders[block] += 1

    def _take_back(self, sequence: Sequence) -> None:
        self._drop(reversed(sequence.block_table))  # the deepest is to be evicted first
        sequence.block_table = []
        sequence.cached_blocks = sequence.computed = 0

    def _drop(self, blocks: Iterable[int]) -> None:
        """One holder fewer for each; who is held no more goes idle if cached, else to the pool."""
        unused = []
        for block in blocks:
            self._holders[block] -= 1
            if self._holders[block] == 0 and block in self._hash_of:
                self._idle[block] = None
            elif self._holders[block] == 0:
                unused.append(block)
        self._pool.give_back(unused)

    def _evict(self, least: int) -> None:
        """Gives at least `least` idle blocks back to the pool, if there are so many."""
        count = min(max(least, self._evicted_together), len(self._idle))
        evicted = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for block in evicted:
            self._forget(block)
        self._pool.give_back(evicted)

    def _forget(self, block: int) -> None:
        """It is cached no longer, if it was."""
        key = self._hash_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
