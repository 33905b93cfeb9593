"""What identifies a block, and what is found, kept and evicted, beside a model without hashes."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.kv_cache import BlockPool
from server.engine.messages import SamplingParams
from server.engine.prefix_cache import PrefixCache, block_hash, root_hash
from server.engine.sequence import Phase, Sequence

BLOCK_SIZE = 2
SAMPLING = SamplingParams(max_tokens=4)
Root = tuple[str, str | None, str]
names = st.text(alphabet="ab\0 é", max_size=4)
roots = st.tuples(names, st.none() | names, names)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=4)


@given(roots, roots)
def test_a_root_is_one_identity_only(one: Root, other: Root) -> None:
    assert (root_hash(*one) == root_hash(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("b", None, "s"), ("b", "", "s")),  # the base alone is no adapter without a name
        (("b", None, "s"), ("b", "base alone", "s")),
        (("b", None, "adapter"), ("b", "adapter", "")),
        (("ab", "c", ""), ("a", "bc", "")),  # the same text, cut elsewhere
        (("b", "ac", "d"), ("b", "a", "cd")),
        (("b", "a", "salt"), ("b", "asalt", "")),
    ],
)
def test_fields_do_not_run_into_one_another(one: Root, other: Root) -> None:
    assert root_hash(*one) != root_hash(*other)


@given(roots, roots, tokens, tokens)
def test_a_block_is_its_root_and_all_tokens_up_to_its_end(
    one: Root, other: Root, these: list[int], those: list[int]
) -> None:
    hashes = {
        (root, first, second): block_hash(block_hash(root_hash(*root), first), second)
        for root in (one, other)
        for first in (tuple(these), tuple(those))
        for second in (tuple(these), tuple(those))
    }
    assert len(set(hashes.values())) == len(hashes)
    assert not set(hashes.values()) & {root_hash(*one), root_hash(*other)}


class Bench:
    """A cache of `blocks` blocks; its sequences compute whatever they are given room for."""

    def __init__(self, blocks: int, *, base: str = "base") -> None:
        self.wiped: list[int] = []
        pool = BlockPool(blocks + 1, self.wiped.extend)
        self.cache = PrefixCache(pool, BLOCK_SIZE, base, enabled=True)
        self.alive: list[Sequence] = []

    def sequence(self, tokens: list[int], adapter: str | None = None, salt: str = "") -> Sequence:
        name = str(len(self.alive))
        return Sequence(name, 0, len(tokens), list(tokens), SAMPLING, adapter, 0, 0.0, salt)

    def begin(self, tokens: list[int], adapter: str | None = None, salt: str = "") -> Sequence:
        one = self.sequence(tokens, adapter, salt)
        self.cache.begin(one)
        self.alive.append(one)
        self.cache.check(self.alive)
        return one

    def compute(self, one: Sequence, count: int) -> None:
        """`count` more of its tokens, as a step that succeeds."""
        self.cache.extend(one, one.computed + count)
        one.computed += count
        self.cache.keep(one)
        self.cache.check(self.alive)

    def release(self, one: Sequence) -> None:
        self.alive.remove(one)
        self.cache.release(one)
        self.cache.check(self.alive)

    def discard(self, one: Sequence) -> None:
        self.alive.remove(one)
        self.cache.discard(one)
        self.cache.check(self.alive)

    def leave(self, tokens: list[int], adapter: str | None = None, salt: str = "") -> None:
        """A sequence comes, computes all it is given, and goes."""
        one = self.begin(tokens, adapter, salt)
        self.compute(one, one.uncomputed)
        self.release(one)

    def found(self, tokens: list[int], adapter: str | None = None, salt: str = "") -> int:
        """Tokens that a sequence would not have to compute."""
        one = self.begin(tokens, adapter, salt)
        found = one.computed
        self.release(one)
        return found


def test_only_one_version_and_salt_finds_what_it_left() -> None:
    bench = Bench(64)
    prompt = [1, 2, 3, 4, 5]
    identities = [(a, s) for a in (None, "", "a", "b") for s in ("", "a", "b", "tenant")]
    for adapter, salt in identities:
        assert bench.found(prompt, adapter, salt) == 0, (adapter, salt)
        bench.leave(prompt, adapter, salt)
        assert bench.found(prompt, adapter, salt) == 4
    assert bench.cache.hit_tokens == 4 * len(identities)


def test_sequences_of_two_versions_never_hold_one_block() -> None:
    bench = Bench(64)
    held: dict[str | None, set[int]] = {}
    for adapter in (None, "a", "b"):
        for _ in range(2):
            one = bench.begin([1, 2, 3, 4, 5])
            two = bench.begin([1, 2, 3, 4, 5], adapter, "salted")
            for started in (one, two):
                bench.compute(started, started.uncomputed)
            assert not set(one.block_table) & set(two.block_table)
            held.setdefault(adapter, set()).update(two.block_table[:2])
    assert all(len(blocks) == 2 for blocks in held.values()), "the same share"
    assert len(set().union(*held.values())) == 6


@pytest.mark.parametrize(
    ("left", "asked", "found"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 2),  # the last token is computed, for its logits
        ([1, 2, 3, 4], [1, 2, 3, 4, 5], 4),
        ([1, 2, 3], [1, 2, 3, 4, 5], 2),  # full blocks only
        ([1], [1, 2], 0),
        ([1, 2, 3, 4], [1, 2, 9, 4, 5], 2),
        ([1, 2, 3, 4], [9, 2, 3, 4, 5], 0),  # nothing behind a difference, though tokens agree
        ([1, 2, 3, 4], [3, 4, 5], 0),
    ],
)
def test_full_blocks_up_to_the_first_difference(
    left: list[int], asked: list[int], found: int
) -> None:
    bench = Bench(8)
    bench.leave(left)
    assert bench.found(asked) == found


def test_what_a_step_is_computing_is_not_found_before_it_succeeded() -> None:
    bench = Bench(8)
    one = bench.begin([1, 2, 3, 4, 5])
    bench.cache.extend(one, 5)
    assert bench.found([1, 2, 3, 4, 5]) == 0
    bench.release(one)  # as if the step had failed: nothing of it was counted as computed
    assert bench.found([1, 2, 3, 4, 5]) == 0
    assert sorted(bench.wiped) == [1, 2, 3]


def test_the_least_recently_held_goes_first_and_the_deepest_of_a_chain() -> None:
    bench = Bench(6)
    old, new = [1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]
    bench.leave(old)
    bench.leave(new)
    assert bench.cache.available == 6
    one = bench.begin([3])
    bench.compute(one, 1)
    assert bench.cache.available == 5
    assert (bench.found([*old, 0]), bench.found([*new, 0])) == (4, 6)  # old's deepest is gone
    two = bench.begin([4, 4, 4, 4])
    bench.compute(two, 4)
    assert (bench.found([*old, 0]), bench.found([*new, 0])) == (0, 6)
    assert sorted(bench.wiped) == sorted({*one.block_table, *two.block_table})


def test_what_is_held_is_never_evicted() -> None:
    bench = Bench(3)
    bench.leave([1, 1, 1, 1])
    one = bench.begin([1, 1, 1, 1, 1])
    assert bench.cache.available == 1
    fresh = bench.sequence([2, 2, 2, 2])
    assert not bench.cache.fits(fresh, 4)
    with pytest.raises(ValueError, match="2 blocks wanted, 1 free"):
        bench.cache.extend(fresh, 4)
    alike = bench.sequence([1, 1, 1, 1, 7, 7])
    assert bench.cache.fits(alike, 6), "two of its three blocks are held by another already"
    bench.release(one)
    assert bench.cache.fits(fresh, 4)


def test_a_block_filled_alike_meanwhile_is_given_back() -> None:
    bench = Bench(6)
    one, two = bench.begin([1, 2, 3]), bench.begin([1, 2, 3])
    for started in (one, two):
        bench.cache.extend(started, 3)
        started.computed = 3
    bench.cache.keep(one)
    bench.alive.remove(one)
    bench.cache.release(one)  # its block is the one that is kept, though nobody holds it now
    double = two.block_table[0]
    bench.cache.keep(two)
    bench.cache.check(bench.alive)
    assert two.block_table[0] != double
    assert double in bench.wiped
    assert bench.cache.available == 4


def test_what_was_discarded_is_found_by_nobody_though_others_hold_it() -> None:
    bench = Bench(8)
    one = bench.begin([1, 2, 3, 4, 5])
    bench.compute(one, 5)
    two = bench.begin([1, 2, 3, 4, 6])
    assert two.computed == 4
    bench.discard(one)
    assert bench.found([1, 2, 3, 4, 5]) == 0
    bench.compute(two, 1)
    bench.release(two)
    assert bench.cache.available == 8
    assert bench.found([1, 2, 3, 4, 6]) == 0


def test_each_token_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(parent: bytes, tokens: list[int]) -> bytes:
        hashed.extend(tokens)
        return block_hash(parent, tokens)

    monkeypatch.setattr("server.engine.prefix_cache.block_hash", counting)
    bench = Bench(64)
    one = bench.begin(list(range(9)))
    bench.compute(one, 9)
    for token in range(9, 40):
        one.tokens.append(token)
        bench.compute(one, 1)
    bench.release(one)
    bench.cache.begin(one)  # as after a pre-emption
    assert one.computed == 38
    assert hashed == list(range(40))


def test_many_are_evicted_together_where_there_are_many() -> None:
    bench = Bench(256)
    for first in range(128):
        bench.leave([first] * 4)
    wipes_before = len(bench.wiped)
    bench.begin([1000, 1000])
    bench.compute(bench.alive[0], 2)
    assert len(bench.wiped) - wipes_before == 256 // 64
    assert bench.cache.available == 255


class Model:
    """The same, by whole beginnings instead of hashes and by scanning instead of counting.

    A beginning is (adapter, salt, *tokens). `own` are blocks that are not, or not yet, cached.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.held: dict[Sequence, list[tuple]] = {}
        self.own: Counter[Sequence] = Counter()
        self.idle: list[tuple] = []  # to be evicted from the front

    @property
    def cached(self) -> set[tuple]:
        return {key for keys in self.held.values() for key in keys} | set(self.idle)

    @property
    def available(self) -> int:
        return self.blocks - len(self.cached) + len(self.idle) - self.own.total()

    def keys(self, one: Sequence, tokens: int) -> list[tuple]:
        ends = range(BLOCK_SIZE, tokens + 1, BLOCK_SIZE)
        return [(one.adapter, one.cache_salt, *one.tokens[:end]) for end in ends]

    def begin(self, one: Sequence) -> int:
        found = []
        for key in self.keys(one, len(one.tokens) - 1):
            if key not in self.cached:
                break
            found.append(key)
        self.held[one] = found
        self.idle = [key for key in self.idle if key not in found]
        return BLOCK_SIZE * len(found)

    def compute(self, one: Sequence, after: int) -> None:
        blocks = -(-after // BLOCK_SIZE)
        self.own[one] += blocks - len(self.held[one]) - self.own[one]
        while len(self.cached) + self.own.total() > self.blocks:
            self.idle.pop(0)
        self.held[one] = self.keys(one, after)
        self.own[one] = blocks - len(self.held[one])
        self.idle = [key for key in self.idle if key not in self.held[one]]

    def release(self, one: Sequence) -> None:
        keys = self.held.pop(one)
        del self.own[one]
        still = {key for held in self.held.values() for key in held}
        self.idle += [key for key in reversed(keys) if key not in still]


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_agree_with_the_model(seed: int) -> None:
    draw = random.Random(seed)
    blocks = draw.randint(6, 14)
    bench, model = Bench(blocks), Model(blocks)
    hits = evictions = 0
    for _ in range(150):
        action = draw.choice(["begin", "compute", "compute", "release"])
        if action == "begin":
            tokens = [draw.randint(0, 1) for _ in range(draw.randint(1, 10))]
            one = bench.begin(tokens, draw.choice([None, "a"]), draw.choice(["", "", "s"]))
            assert one.computed == model.begin(one)
            hits += one.computed
        elif action == "compute" and bench.alive:
            one = draw.choice(bench.alive)
            count = draw.randint(1, 4)
            while one.uncomputed < count:
                one.tokens.append(draw.randint(0, 1))
            if one.blocks_for(one.computed + count, BLOCK_SIZE) <= bench.cache.available:
                wiped = len(bench.wiped)
                model.compute(one, one.computed + count)
                bench.compute(one, count)
                evictions += len(bench.wiped) - wiped
        elif action == "release" and bench.alive:
            one = draw.choice(bench.alive)
            model.release(one)
            bench.release(one)
        assert bench.cache.available == model.available
        assert bench.cache.used == blocks - model.available
    for one in list(bench.alive):
        assert one.phase is Phase.WAITING
        bench.release(one)
    assert bench.cache.available == blocks
    assert hits and evictions
