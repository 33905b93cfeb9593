"""The scheduler's choices: budget, decodes first, overtaking with an end, pre-emption in order.

Adapters are read when a test says so; slots, blocks and sequences are the real ones. In place of
keys and values, Memory holds what they would be made of, and every step looks at all it reads.
"""

import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from adapters_store.errors import AdapterNotFound
from server.adapters.residency import Residency
from server.adapters.slots import SlotLease, SlotTable
from server.engine.kv_cache import BlockPool
from server.engine.messages import SamplingParams, TokenEvent
from server.engine.plan import Chunk, StepPlan
from server.engine.prefix_cache import PrefixCache
from server.engine.sampler import Sampled, SampledToken
from server.engine.scheduler import MAX_FILLS, MAX_OVERTAKES, Scheduler, SchedulerLimits
from server.engine.sequence import Phase, Sequence
from server.kernels.segments import NO_ADAPTER, Segment

EOS = 2
BLOCK_SIZE = 4


class Reads:
    """Stands in for Residency's reading: a digest is at hand once it is in `at_hand`."""

    def __init__(self, slots: int, at_hand: set[str]) -> None:
        self.slots = SlotTable(slots, rows=8 * slots)
        self.ranks = [4] * slots
        self.at_hand = at_hand
        self.fills_left = 0.0

    def request(self, digest: str) -> None:
        pass

    def allow_fills(self, most: float) -> None:
        self.fills_left = most

    def prepare(self, digest: str) -> bool:
        return self.slots.holds(digest) or (digest in self.at_hand and self.fills_left > 0)

    def try_lease(self, digest: str) -> SlotLease | None:
        if not self.slots.holds(digest):
            if self.slots.assign(digest, rank=4) is None:
                return None
            self.fills_left -= 1
        return self.slots.lease(digest)

    def release(self, lease: SlotLease) -> None:
        self.slots.release(lease)

    def check(self) -> None:
        self.slots.check()


class Memory:
    """What lies in each place of the KV cache: all that a key there depends on; None if wiped.

    Drafts may be left behind a sequence's tokens: they are finite, and its own.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[Any, ...]] = {}
        self._drafts: dict[int, Sequence] = {}

    def wipe(self, blocks: list[int]) -> None:
        for block in blocks:
            for offset in range(BLOCK_SIZE):
                self._places.pop(block * BLOCK_SIZE + offset, None)
                self._drafts.pop(block * BLOCK_SIZE + offset, None)

    def run(self, plan: StepPlan) -> None:
        """Writes as the attention would, then looks at every place that each chunk reads."""
        starts = plan.query_starts.tolist()
        for row, chunk in enumerate(plan.chunks):
            places = plan.write_places[starts[row] : starts[row + 1]].tolist()
            for position, place in enumerate(places, start=chunk.start):
                self._places[place] = self._content(chunk, position)
                self._drafts.pop(place, None)
                if chunk.drafted:
                    self._drafts[place] = chunk.sequence
        for row, chunk in enumerate(plan.chunks):
            end = chunk.start + chunk.count
            blocks = plan.block_tables[row, : -(-end // BLOCK_SIZE)].tolist()
            read = [b * BLOCK_SIZE + offset for b in blocks for offset in range(BLOCK_SIZE)]
            wanted = [self._content(chunk, position) for position in range(end)]
            assert [self._places.get(place) for place in read[:end]] == wanted
            masked = [place for place in read[end:] if self._drafts.get(place) != chunk.sequence]
            assert not any(place in self._places for place in masked), "what is masked is wiped"

    def _content(self, chunk: Chunk, position: int) -> tuple[Any, ...]:
        sequence = chunk.sequence
        return sequence.adapter, sequence.cache_salt, tuple(chunk.text[: position + 1])


class Bench:
    """A scheduler, and what a runner would give back: token 9 for every row.

    Prompts are all different, unless a test gives them.
    """

    def __init__(
        self,
        *,
        tokens: int = 16,
        sequences: int = 8,
        blocks: int = 64,
        slots: int = 2,
        at_hand: set[str] | None = None,
        prefix_cache: bool = True,
        slowdown: float | None = None,
        speculative: int = 0,
    ) -> None:
        self.reads = Reads(slots, at_hand if at_hand is not None else {"a", "b", "c", "d"})
        self.memory = Memory()
        pool = BlockPool(blocks + 1, self.memory.wipe)
        self.cache = PrefixCache(pool, BLOCK_SIZE, "base", enabled=prefix_cache)
        self.scheduler = Scheduler(
            SchedulerLimits(tokens, sequences, BLOCK_SIZE, slowdown, speculative),
            self.cache,
            cast(Residency, self.reads),
            frozenset({EOS}),
            torch.device("cpu"),
        )
        self._clock = 0.0

    def add(
        self,
        name: str,
        prompt: int | list[int],
        adapter: str | None = None,
        salt: str = "",
        **sampling: Any,
    ) -> Sequence:
        self._clock += 1
        params = SamplingParams(**({"max_tokens": 4, "temperature": 0.0} | sampling))
        tokens = [1000 + int(self._clock)] * prompt if isinstance(prompt, int) else list(prompt)
        one = Sequence(name, 0, len(tokens), tokens, params, adapter, 0, self._clock, salt)
        self.scheduler.add(one)
        return one

    def step(self, token: int = 9, *, finite: bool = True) -> StepPlan | None:
        return self.step_saying(lambda _: token if finite else None)

    def step_saying(self, says: Callable[[Chunk], int | None]) -> StepPlan | None:
        """A step whose rows say what each chunk is given; None for one that is not finite."""
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is not None:
            self.memory.run(plan)
            said = [says(chunk) for chunk in plan.sampled]
            rows = tuple(None if token is None else SampledToken(token) for token in said)
            self.events = self.scheduler.apply(plan, Sampled(rows))
            self.scheduler.check()
        return plan

    def failing_step(self) -> None:
        """Everything is written, then the step raises, and the engine ends those who were in it."""
        plan = self.scheduler.schedule()
        if plan is not None:
            self.memory.run(plan)
            for sequence in dict.fromkeys(chunk.sequence for chunk in plan.chunks):
                self.scheduler.end(sequence, spoilt=True)
            self.scheduler.check()

    def counts(self, token: int = 9) -> dict[str, int]:
        plan = self.step(token)
        return {} if plan is None else {c.sequence.request_id: c.count for c in plan.chunks}

    def drain(self, limit: int = 500) -> int:
        for steps in range(limit):
            if self.step() is None:
                assert not self.scheduler.running
                return steps
        raise AssertionError("the scheduler does not come to an end")


def test_a_long_prompt_goes_in_chunks_beside_decodes() -> None:
    bench = Bench(tokens=10)
    bench.add("short", prompt=3)
    assert bench.counts() == {"short": 3}
    bench.add("long", prompt=25)
    assert bench.counts() == {"short": 1, "long": 9}
    assert bench.counts() == {"short": 1, "long": 9}
    assert bench.counts() == {"short": 1, "long": 7}
    assert bench.counts() == {"long": 1}


def test_decodes_come_before_prompts_however_tight_the_budget() -> None:
    bench = Bench(tokens=4)
    for name in "xyz":
        bench.add(name, prompt=1, max_tokens=50)
    bench.counts()
    bench.add("long", prompt=40)
    for _ in range(5):
        assert bench.counts() == {"x": 1, "y": 1, "z": 1, "long": 1}


def test_plan_rows_lie_decodes_first_then_by_slot() -> None:
    bench = Bench(tokens=32)
    bench.add("b", prompt=1, adapter="b")
    bench.add("a", prompt=1, adapter="a")
    bench.add("base", prompt=1)
    bench.step()
    bench.add("prompt", prompt=6, adapter="b")
    plan = bench.step()
    assert plan is not None
    slots = [chunk.slot for chunk in plan.chunks]
    assert slots[:3] == sorted(slots[:3])
    assert slots[0] == NO_ADAPTER
    assert [chunk.sequence.request_id for chunk in plan.chunks][3] == "prompt"
    assert plan.decodes == 3
    assert plan.query_starts.tolist() == [0, 1, 2, 3, 9]
    assert plan.sample_rows.tolist() == [0, 1, 2, 8]
    assert plan.tokens == 9
    assert plan.positions[:9].tolist() == [1, 1, 1, 0, 1, 2, 3, 4, 5]
    assert len(plan.token_ids) == len(plan.positions) == plan.segments.tokens == 16
    assert plan.segments.items[-1] == Segment(9, 16, NO_ADAPTER, 0)


def test_places_follow_the_block_table() -> None:
    bench = Bench(tokens=32)
    one = bench.add("a", prompt=6)
    plan = bench.scheduler.schedule()
    assert plan is not None
    first, second = one.block_table
    assert plan.write_places.tolist() == [
        *(first * 4 + offset for offset in range(4)),
        second * 4,
        second * 4 + 1,
    ]
    assert plan.block_tables.tolist() == [[first, second]]


@pytest.mark.parametrize(
    ("token", "sampling", "reason"),
    [
        (EOS, {}, "stop"),
        (EOS, {"ignore_eos": True, "max_tokens": 1}, "length"),
        (7, {"stop_token_ids": (7,)}, "stop"),
        (9, {"max_tokens": 1}, "length"),
        (9, {"max_tokens": 2}, None),
    ],
)
def test_what_ends_a_sequence(token: int, sampling: dict[str, Any], reason: str | None) -> None:
    bench = Bench()
    bench.add("a", prompt=2, **sampling)
    bench.step(token)
    (event,) = bench.events
    assert isinstance(event, TokenEvent)
    assert (event.token_id, event.finish_reason) == (token, reason)
    assert event.timing is not None
    assert bool(bench.scheduler.running) == (reason is None)
    assert bool(bench.cache.used) == (reason is None)


def test_a_cold_adapter_at_the_head_holds_up_nobody() -> None:
    bench = Bench(at_hand={"a"})
    bench.add("cold", prompt=2, adapter="b")
    bench.add("warm", prompt=2, adapter="a")
    bench.add("base", prompt=2)
    assert set(bench.counts()) == {"warm", "base"}
    bench.reads.at_hand.add("b")
    assert "cold" in bench.counts()


def test_a_cold_adapter_that_has_come_goes_before_what_arrived_later() -> None:
    """However many are served in the meantime: the one place there is goes to the cold one next."""
    bench = Bench(at_hand={"a"}, sequences=1)
    cold = bench.add("cold", prompt=2, adapter="b")
    for number in range(5):
        bench.add(f"warm{number}", prompt=2, adapter="a", max_tokens=1)
    assert set(bench.counts()) == {"warm0"}
    assert set(bench.counts()) == {"warm1"}
    bench.reads.at_hand.add("b")
    assert set(bench.counts()) == {"cold"}
    assert cold.overtaken == 0, "it was being read, and wanted no slot"
    bench.drain()


def test_while_streams_run_few_slots_are_filled_in_a_step_in_order_of_arrival() -> None:
    cold = [f"cold{number}" for number in range(7)]
    bench = Bench(slots=8, at_hand=set(cold), tokens=64, sequences=9)
    bench.add("stream", prompt=1, max_tokens=50)
    bench.step()
    for name in cold:
        bench.add(name, prompt=1, adapter=name, max_tokens=50)
    warm = bench.add("warm", prompt=1, adapter="cold0", max_tokens=50)
    counts = [bench.counts() for _ in range(4)]
    assert warm.request_id in counts[0], "its adapter is in a slot by then: nothing to fill"
    for step, count in enumerate(counts):
        assert [name for name in cold if name in count] == cold[: MAX_FILLS * (step + 1)]
    assert all("stream" in count for count in counts)
    assert all(one.overtaken == 0 for one in bench.scheduler.running)


def test_when_nothing_runs_all_slots_are_filled_at_once() -> None:
    cold = [f"cold{number}" for number in range(7)]
    bench = Bench(slots=8, at_hand=set(cold), tokens=64)
    for name in cold:
        bench.add(name, prompt=1, adapter=name)
    assert set(bench.counts()) == set(cold)


def test_the_digests_that_are_waited_for() -> None:
    bench = Bench(at_hand={"a"}, slots=1)
    bench.add("holder", prompt=1, adapter="a", max_tokens=50)
    bench.add("base", prompt=1)
    for adapter in "bcb":
        bench.add(f"{adapter}{len(bench.scheduler.waiting)}", prompt=1, adapter=adapter)
    bench.step()
    assert bench.scheduler.awaited() == {"b", "c"}


def test_a_sequence_without_a_slot_is_overtaken_only_so_often() -> None:
    bench = Bench(slots=1, sequences=4, tokens=64)
    bench.add("holder", prompt=1, adapter="a", max_tokens=3)
    bench.step()
    waiter = bench.add("waiter", prompt=1, adapter="b", max_tokens=1)
    for number in range(3 * MAX_OVERTAKES):
        bench.add(f"later{number}", prompt=1, adapter="a", max_tokens=3)
    steps = 0
    while waiter.phase is Phase.WAITING:
        bench.step()
        steps += 1
        assert steps < 200, "the waiter starves"
    assert waiter.overtaken == MAX_OVERTAKES
    bench.drain()


def test_the_latest_arrival_is_pre_empted_and_keeps_its_lease() -> None:
    bench = Bench(blocks=6, tokens=64)
    first = bench.add("first", prompt=8, max_tokens=9)
    last = bench.add("last", prompt=8, adapter="a", max_tokens=9)
    while not bench.scheduler.preemptions:
        bench.step()
    assert last.phase is Phase.WAITING
    assert last.lease is not None
    assert (last.block_table, last.computed) == ([], 0)
    assert first.phase is Phase.RUNNING
    length = len(last.tokens)
    bench.drain()
    assert len(first.tokens) == len(last.tokens) == 17
    assert length < 17
    assert bench.reads.slots.leases == 0
    assert bench.cache.used == 0


def test_failed_loads_end_those_who_wait_for_them() -> None:
    bench = Bench(at_hand={"a"})
    bench.add("a", prompt=2, adapter="a")
    lost = [bench.add(name, prompt=2, adapter="b") for name in "xy"]
    bench.step()
    error = AdapterNotFound("gone")
    assert bench.scheduler.fail_loads({"b": error}) == [(one, error) for one in lost]
    assert all(one.phase is Phase.OVER for one in lost)
    bench.drain()


@pytest.mark.parametrize("seed", range(30))
def test_random_histories_come_to_an_end_with_nothing_held(seed: int) -> None:
    draw = random.Random(seed)
    bench = Bench(
        tokens=draw.randint(3, 24),
        sequences=draw.randint(1, 6),
        blocks=draw.randint(12, 20),
        slots=draw.randint(1, 3),
        prefix_cache=seed % 5 > 0,
        slowdown=1.5 if seed % 2 else None,
        speculative=seed % 2 * 4,
    )
    alive: list[Sequence] = []
    asked = [[draw.randrange(100, 103) for _ in range(30)] for _ in range(2)]  # and then answers
    for number in range(60):
        if draw.random() < 0.7:
            adapter = draw.choice([None, None, "a", "b", "c", "d"])
            most = {"max_tokens": draw.randint(1, 12)}
            prompt = draw.choice(asked)[: draw.randint(1, 30)]
            alive.append(bench.add(str(number), prompt, adapter, draw.choice(["", "s"]), **most))
        asked += [one.tokens for one in alive if one.phase is Phase.OVER]
        alive = [one for one in alive if one.phase is not Phase.OVER]
        if alive and draw.random() < 0.2:
            bench.scheduler.end(alive.pop(draw.randrange(len(alive))))
            bench.scheduler.check()
        if draw.random() < 0.05:
            bench.failing_step()
        plan = bench.step(draw.choice([9, 9, 9, 8, EOS]), finite=draw.random() > 0.03)
        if plan is not None:
            bench.scheduler.took(plan, draw.expovariate(1.0))
    bench.drain()
    assert not bench.scheduler.waiting
    assert bench.cache.used == 0
    assert bench.reads.slots.leases == 0
    assert bool(bench.cache.hit_tokens) == (seed % 5 > 0)
    assert not bench.scheduler.drafted_tokens or seed % 2


def test_a_prompt_that_begins_alike_is_computed_from_where_it_differs() -> None:
    bench = Bench(tokens=64)
    system = list(range(100, 110))
    first = bench.add("first", [*system, 1, 1])
    assert bench.counts() == {"first": 12}
    later = bench.add("later", [*system, 1, 7, 7])
    same = bench.add("same", [*system, 1, 1])
    assert bench.counts() == {"first": 1, "later": 5, "same": 4}  # never no token at all
    assert (first.cached_tokens, later.cached_tokens, same.cached_tokens) == (0, 8, 8)
    assert first.block_table[:2] == later.block_table[:2] == same.block_table[:2]
    assert first.block_table[2] == same.block_table[2], "of two filled alike, one is kept"
    bench.drain()
    assert (bench.cache.queried_tokens, bench.cache.hit_tokens) == (12 + 13 + 12, 16)


def test_a_chunk_is_found_once_its_step_is_over() -> None:
    bench = Bench(tokens=9)
    prompt = list(range(100, 120))
    for name in "xy":
        bench.add(name, prompt)
    assert bench.counts() == {"x": 9}
    assert bench.counts() == {"x": 9}
    assert bench.counts() == {"x": 2, "y": 4}, "x's sixteen tokens that are done"
    bench.drain()


def test_answers_are_found_by_the_next_turn() -> None:
    bench = Bench(tokens=64)
    turn = bench.add("first", list(range(100, 106)), max_tokens=7)
    bench.drain()
    bench.add("next", [*turn.tokens, 50, 51])
    assert bench.counts() == {"next": 3}  # 6 + 7, of which the last was never computed: 12 in full


def test_the_pre_empted_begin_again_where_they_were() -> None:
    bench = Bench(blocks=6, tokens=64)
    first = bench.add("first", 8, max_tokens=9)
    last = bench.add("last", 8, max_tokens=9)
    while not bench.scheduler.preemptions:
        bench.step()
    assert (last.block_table, last.computed) == ([], 0)
    while first.phase is not Phase.OVER:
        bench.step()
    plan = bench.step()
    assert plan is not None
    assert (plan.chunks[0].sequence, plan.chunks[0].start) == (last, 8)
    bench.drain()
    assert last.cached_tokens == 0, "what it found of its own is no one's news"
    assert bench.cache.hit_tokens == 0


def test_what_others_hold_costs_no_room() -> None:
    bench = Bench(blocks=6, tokens=64)
    prompt = list(range(100, 117))
    bench.add("first", prompt, max_tokens=2)
    bench.step()
    bench.add("alike", prompt, max_tokens=2)
    assert bench.counts() == {"first": 1, "alike": 1}  # five blocks and five, in six
    bench.drain()


@pytest.mark.parametrize("end", ["not finite", "failed step"])
def test_nothing_stays_of_what_went_wrong(end: str) -> None:
    bench = Bench(tokens=10)
    prompt = list(range(100, 114))
    bench.add("bad", prompt)
    assert bench.counts() == {"bad": 10}
    if end == "not finite":
        bench.step(finite=False)
    else:
        bench.failing_step()
    assert not bench.scheduler.running
    bench.add("next", prompt)
    assert bench.counts() == {"next": 10}
    bench.drain()


def test_without_a_cache_nothing_is_shared() -> None:
    bench = Bench(tokens=64, prefix_cache=False)
    for name in "xy":
        bench.add(name, list(range(100, 112)))
        assert bench.counts() == {name: 12}
        bench.drain()
    assert (bench.cache.queried_tokens, bench.cache.hit_tokens) == (0, 0)


def seconds_of(plan: StepPlan) -> float:
    """What a step takes on a machine of even temper."""
    return 0.03 + 0.002 * plan.decodes + 0.001 * (plan.tokens - plan.decodes)


def timed_step(bench: Bench) -> tuple[StepPlan, float]:
    plan = bench.step()
    assert plan is not None
    bench.scheduler.took(plan, seconds_of(plan))
    return plan, seconds_of(plan)


def with_streams(count: int, slowdown: float | None) -> Bench:
    """A scheduler in whose every step `count` sequences get their next token, for long."""
    bench = Bench(tokens=512, sequences=64, blocks=2000, slowdown=slowdown)
    for number in range(count):
        bench.add(f"stream{number}", 20, max_tokens=400)
    for _ in range(40):
        timed_step(bench)
    return bench


def until_read(bench: Bench, prompts: list[Sequence]) -> list[float]:
    """Seconds of each step until all of them have a token."""
    taken = []
    while any(one.output_length == 0 for one in prompts):
        taken.append(timed_step(bench)[1])
    return taken


@pytest.mark.parametrize("streams", [1, 8, 40])
def test_a_long_prompt_slows_running_streams_by_the_bound_and_no_more(streams: int) -> None:
    bench = with_streams(streams, slowdown=1.8)
    _, alone_s = timed_step(bench)
    taken = until_read(bench, [bench.add("long", 1500, max_tokens=1)])
    assert max(taken) < 2 * alone_s
    assert min(taken[len(taken) // 2 : -1]) > 1.4 * alone_s, "it is read as fast as it may be"


def test_without_a_bound_prompts_fill_every_step() -> None:
    bench = with_streams(8, slowdown=None)
    taken = until_read(bench, [bench.add("long", 1500, max_tokens=1)])
    assert len(taken) == 3


def test_many_prompts_are_read_faster_than_one() -> None:
    bench = with_streams(8, slowdown=1.5)
    _, alone_s = timed_step(bench)
    taken = until_read(bench, [bench.add(f"p{n}", 256, max_tokens=1) for n in range(4)])
    assert taken[0] == pytest.approx(3 * alone_s, rel=0.2), "each of the four adds half a step"


def test_prompts_that_arrive_together_are_read_in_full_steps() -> None:
    """Though the first of them answer already when the last is read, also in a new engine."""
    bench = Bench(tokens=512, sequences=64, blocks=2000, slowdown=1.8)
    for number in range(16):
        bench.add(str(number), 128, max_tokens=64)
    assert [timed_step(bench)[0].tokens for _ in range(6)] == [512, 512, 512, 512, 37, 16]


def said(bench: Bench) -> list[tuple[str | None, int | None, str | None]]:
    """Who said what in the last step, and whether it was over by that; a failure says nothing."""
    return [
        (e.request_id, e.token_id, e.finish_reason)
        if isinstance(e, TokenEvent)
        else (e.request_id, None, e.code)
        for e in bench.events
    ]


def drafting(bench: Bench, name: str, *, length: int = 4, **options: Any) -> Sequence:
    """A sequence that has said 5, 6, 7, 5, 6, 7 and now drafts `length` tokens at once."""
    options = {"prompt": [5, 6, 7, 5, 6], "max_tokens": 40} | options
    one = bench.add(name, **options)
    bench.step(7)
    assert one.lookup is not None
    one.lookup.learn(length, length)
    return one


def counting(chunk: Chunk) -> int:
    """Goes on as the drafts do: 5, 6, 7, 5, 6, 7, …"""
    return (chunk.text[-1] - 4) % 3 + 5


def test_drafts_are_rows_like_decodes_and_are_all_taken_if_true() -> None:
    bench = Bench(speculative=4)
    one = drafting(bench, "a")
    bench.events = []
    plan = bench.step_saying(counting)
    assert plan is not None
    assert plan.decodes == len(plan.chunks) == len(plan.sampled) == 5
    assert plan.token_ids[:5].tolist() == [7, 5, 6, 7, 5]
    assert plan.positions[:5].tolist() == [5, 6, 7, 8, 9]
    assert plan.sample_rows.tolist() == [0, 1, 2, 3, 4]
    places = [one.block_table[at // 4] * 4 + at % 4 for at in range(5, 10)]
    assert plan.write_places.tolist() == places
    assert said(bench) == [("a", token, None) for token in (5, 6, 7, 5, 6)]
    assert (len(one.tokens), one.computed, one.cached_blocks) == (11, 10, 2)
    counted = bench.scheduler
    assert (counted.drafts, counted.drafted_tokens, counted.accepted_tokens) == (1, 4, 4)
    bench.drain()


def test_from_the_first_wrong_draft_on_none_counts() -> None:
    bench = Bench(speculative=4)
    one = drafting(bench, "a")
    # The third row parts from its draft; the fourth is right, but for another text.
    bench.step_saying(lambda chunk: 9 if len(chunk.drafted) == 2 else counting(chunk))
    assert said(bench) == [("a", token, None) for token in (5, 6, 9)]
    assert one.tokens == [5, 6, 7, 5, 6, 7, 5, 6, 9]
    assert (one.computed, one.cached_blocks) == (8, 2)
    assert bench.scheduler.accepted_tokens == 2
    bench.drain()


def test_what_ends_a_sequence_among_its_drafts() -> None:
    for sampling, reason, tokens in (
        ({"stop_token_ids": (6,)}, "stop", 2),
        ({"stop_token_ids": (6,), "min_tokens": 4}, "stop", 5),
        ({"max_tokens": 4}, "length", 3),
        ({"max_tokens": 3}, "length", 2),
    ):
        bench = Bench(speculative=4)
        one = drafting(bench, "a", **sampling)
        bench.step_saying(counting)
        wanted = [("a", token, None) for token in (5, 6, 7, 5, 6)[:tokens]]
        wanted[-1] = (*wanted[-1][:2], reason)
        assert said(bench) == wanted
        assert one.phase is Phase.OVER
        assert bench.cache.used == 0
        # As after plain decodes, all but the last token can be found.
        alike = bench.add("next", one.tokens + [50])
        bench.step()
        assert alike.cached_tokens == (len(one.tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_drafts_leave_prompts_all_that_they_want_of_a_step() -> None:
    bench = Bench(tokens=9, speculative=4)
    drafting(bench, "a")
    bench.add("long", prompt=21)
    assert bench.counts(7) == {"a": 1, "long": 8}
    plan = bench.step_saying(counting)
    assert plan is not None
    assert [chunk.count for chunk in plan.chunks] == [1, 8]
    plan = bench.step_saying(counting)
    assert plan is not None
    assert plan.tokens == 9
    assert sum(1 for chunk in plan.chunks if chunk.drafted) == 3, "what the prompt's end leaves"


def test_nobody_loses_a_block_to_a_draft() -> None:
    bench = Bench(blocks=4, speculative=8, prefix_cache=False)
    one = drafting(bench, "a", length=8, max_tokens=5)  # six tokens, in two blocks of four
    bench.add("b", prompt=4, max_tokens=1)
    plan = bench.step_saying(counting)
    assert plan is not None
    drafts = [chunk for chunk in plan.chunks if chunk.drafted]
    assert len(drafts) == 2, "the free block is b's next"
    assert len(one.block_table) == 2
    bench.drain()
    assert bench.scheduler.preemptions == 0


def test_a_wrong_draft_that_overflowed_leaves_nothing_behind() -> None:
    bench = Bench(speculative=4)
    one = drafting(bench, "a")
    bench.step_saying(lambda chunk: None if len(chunk.drafted) == 2 else 8)
    assert said(bench) == [("a", 8, None)]
    assert (one.phase, one.block_table, one.lookup) == (Phase.WAITING, [], None)
    plan = bench.step_saying(counting)
    assert plan is not None
    assert [(chunk.start, chunk.count) for chunk in plan.chunks] == [(4, 3)]
    bench.drain()


def test_a_right_draft_that_overflowed_ends_the_sequence_as_a_decode_would() -> None:
    bench = Bench(speculative=4)
    drafting(bench, "a")
    bench.step_saying(lambda chunk: None if len(chunk.drafted) == 2 else counting(chunk))
    assert said(bench) == [("a", 5, None), ("a", 6, None), ("a", None, "engine_failed")]
    assert not bench.scheduler.running
    bench.add("b", [5, 6, 7, 5, 6, 7])
    assert bench.counts() == {"b": 6}, "nothing of it is found"
    bench.drain()
