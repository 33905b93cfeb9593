"""The scheduler's choices: budget, decodes first, overtaking with an end, pre-emption in order.

Adapters are read when a test says so; slots, blocks and sequences are the real ones.
"""

import random
from typing import Any, cast

import pytest
import torch

from adapters_store.errors import AdapterNotFound
from server.adapters.residency import Residency
from server.adapters.slots import SlotLease, SlotTable
from server.engine.kv_cache import BlockPool
from server.engine.messages import SamplingParams, TokenEvent
from server.engine.plan import StepPlan
from server.engine.sampler import Sampled, SampledToken
from server.engine.scheduler import MAX_OVERTAKES, Scheduler, SchedulerLimits
from server.engine.sequence import Phase, Sequence
from server.kernels.segments import NO_ADAPTER

EOS = 2


class Reads:
    """Stands in for Residency's reading: a digest is at hand once it is in `at_hand`."""

    def __init__(self, slots: int, at_hand: set[str]) -> None:
        self.slots = SlotTable(slots)
        self.ranks = [4] * slots
        self.at_hand = at_hand

    def request(self, digest: str) -> None:
        pass

    def prepare(self, digest: str) -> bool:
        return digest in self.at_hand

    def try_lease(self, digest: str) -> SlotLease | None:
        if not self.slots.holds(digest) and self.slots.assign(digest) is None:
            return None
        return self.slots.lease(digest)

    def release(self, lease: SlotLease) -> None:
        self.slots.release(lease)

    def check(self) -> None:
        self.slots.check()


class Bench:
    """A scheduler, and what a runner would give back: token 9 for every row."""

    def __init__(
        self,
        *,
        tokens: int = 16,
        sequences: int = 8,
        blocks: int = 64,
        slots: int = 2,
        at_hand: set[str] | None = None,
    ) -> None:
        self.reads = Reads(slots, at_hand if at_hand is not None else {"a", "b", "c", "d"})
        self.pool = BlockPool(blocks + 1, lambda _: None)
        self.scheduler = Scheduler(
            SchedulerLimits(tokens, sequences, block_size=4),
            self.pool,
            cast(Residency, self.reads),
            frozenset({EOS}),
            torch.device("cpu"),
        )
        self._clock = 0.0

    def add(self, name: str, prompt: int, adapter: str | None = None, **sampling: Any) -> Sequence:
        self._clock += 1
        params = SamplingParams(**({"max_tokens": 4, "temperature": 0.0} | sampling))
        one = Sequence(name, 0, prompt, [5] * prompt, params, adapter, 0, self._clock)
        self.scheduler.add(one)
        return one

    def step(self, token: int = 9) -> StepPlan | None:
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is not None:
            sampled = Sampled(tuple(SampledToken(token) for _ in plan.sampled))
            self.events = self.scheduler.apply(plan, sampled)
            self.scheduler.check()
        return plan

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
    assert plan.positions.tolist() == [1, 1, 1, 0, 1, 2, 3, 4, 5]
    assert plan.segments.starts.tolist()[-1] == plan.tokens == 9


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
    assert bool(bench.pool.used) == (reason is None)


def test_a_cold_adapter_at_the_head_holds_up_nobody() -> None:
    bench = Bench(at_hand={"a"})
    bench.add("cold", prompt=2, adapter="b")
    bench.add("warm", prompt=2, adapter="a")
    bench.add("base", prompt=2)
    assert set(bench.counts()) == {"warm", "base"}
    bench.reads.at_hand.add("b")
    assert "cold" in bench.counts()


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
    assert bench.pool.used == 0


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
    )
    alive: list[Sequence] = []
    for number in range(40):
        if draw.random() < 0.7:
            adapter = draw.choice([None, "a", "b", "c", "d"])
            most = {"max_tokens": draw.randint(1, 12)}
            alive.append(bench.add(str(number), draw.randint(1, 30), adapter, **most))
        alive = [one for one in alive if one.phase is not Phase.OVER]
        if alive and draw.random() < 0.2:
            bench.scheduler.end(alive.pop(draw.randrange(len(alive))))
            bench.scheduler.check()
        bench.step(draw.choice([9, 9, 9, EOS]))
    bench.drain()
    assert not bench.scheduler.waiting
    assert bench.pool.used == 0
    assert bench.reads.slots.leases == 0
