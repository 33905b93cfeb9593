"""Seeded traffic for an in-process engine, and the loop that plays it.

A schedule counts steps, not seconds, so that the same seed always makes the same batches.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from server.engine.engine import Engine
from server.engine.messages import Failed, GenerationRequest, SamplingParams, TokenEvent

Key = tuple[str, int]  # a call's id, and which of its sequences

PATIENCE_S = 20.0  # without an event before a run counts as stuck


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who asks what, when (in steps), and when it is aborted, if ever."""

    id: str
    adapter: str | None  # name
    prompt: tuple[int, ...]
    max_tokens: int
    at_step: int
    ignore_eos: bool = False
    abort_after: int | None = None  # steps after its arrival
    n: int = 1  # sequences; greedy ones must all be the same
    salt: str = ""  # cache_salt


@dataclass(slots=True)
class Outcome:
    """What came back for one sequence of a call. `reason` is None until it ended."""

    tokens: list[int] = field(default_factory=list)
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """What random traffic is drawn from."""

    requests: int
    adapters: Sequence[str | None]
    prompts: Sequence[tuple[int, ...]]
    max_tokens: tuple[int, int]  # least and most
    per_step: float  # mean arrivals per step
    aborted: float = 0.0  # share of the requests
    salts: Sequence[str] = ("",)


def random_prompts(
    count: int, vocab: int, lengths: tuple[int, int], seed: int
) -> list[tuple[int, ...]]:
    """`count` prompts of random ids, their lengths uniform in `lengths`."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(vocab) for _ in range(rng.randint(*lengths))) for _ in range(count)]


def alike_prompts(
    count: int, vocab: int, beginnings: int, lengths: tuple[int, int], seed: int
) -> list[tuple[int, ...]]:
    """`count` prompts of random ids with lengths in `lengths`, each one of few beginnings, whole
    or cut short, and then up to 9 ids of its own."""
    rng = random.Random(seed)
    least, most = lengths
    systems = random_prompts(beginnings, vocab, (most - 9, most - 9), seed)
    tails = random_prompts(count, vocab, (0, 9), seed + 1)
    return [rng.choice(systems)[: rng.randint(least, most)] + tail for tail in tails]


def random_calls(mix: Mix, seed: int) -> list[Call]:
    """Calls at exponentially distributed intervals: now bursts, now lulls."""
    rng, salts = random.Random(seed), random.Random(seed)
    calls, clock = [], 0.0
    for number in range(mix.requests):
        clock += rng.expovariate(mix.per_step)
        calls.append(
            Call(
                id=f"r{number}",
                adapter=rng.choice(mix.adapters),
                prompt=rng.choice(mix.prompts),
                max_tokens=rng.randint(*mix.max_tokens),
                at_step=int(clock),
                ignore_eos=rng.random() < 0.5,
                abort_after=rng.randrange(20) if rng.random() < mix.aborted else None,
                n=rng.choice((1, 1, 1, 1, 1, 1, 2, 3)),
                salt=salts.choice(mix.salts),
            )
        )
    return calls


def play(
    engine: Engine, calls: Sequence[Call], digests: Mapping[str, str], *, check_every: int = 1
) -> dict[Key, Outcome]:
    """Runs the calls to their ends. Returns each sequence's outcome.

    Recounts the engine every `check_every` steps. Raises AssertionError if a call fails, a sequence
    ends twice or gets a token after its end, or if nothing happens for PATIENCE_S.
    """
    arriving = _by_step((call.at_step, call) for call in calls)
    leaving = _by_step((c.at_step + c.abort_after, c) for c in calls if c.abort_after is not None)
    outcomes: dict[Key, Outcome] = {}
    running: set[Key] = set()
    step, heard, last = 0, time.monotonic(), max(arriving)
    while step <= last or running:
        for call in arriving.get(step, []):
            new = {(call.id, index): Outcome() for index in range(call.n)}
            outcomes |= new
            running |= new.keys()
            engine.submit(_request(call, digests))
        for call in leaving.get(step, []):
            engine.abort(call.id)  # even if it is over: a client may leave too late
            for key in [key for key in running if key[0] == call.id]:
                outcomes[key].reason = "abort"
                running.remove(key)
        for event in engine.step():
            heard = time.monotonic()
            _apply(event, outcomes, running)
        if step % check_every == 0:
            engine.check()
        step += 1
        assert time.monotonic() - heard < PATIENCE_S, f"stuck at step {step} with {running}"
    return outcomes


def _by_step(entries: Iterable[tuple[int, Call]]) -> dict[int, list[Call]]:
    grouped: dict[int, list[Call]] = {}
    for step, call in entries:
        grouped.setdefault(step, []).append(call)
    return grouped


def _request(call: Call, digests: Mapping[str, str]) -> GenerationRequest:
    sampling = SamplingParams(call.max_tokens, temperature=0.0, ignore_eos=call.ignore_eos)
    adapter = None if call.adapter is None else digests[call.adapter]
    return GenerationRequest(call.id, call.prompt, sampling, adapter, call.n, call.salt)


def _apply(event: TokenEvent | Failed, outcomes: Mapping[Key, Outcome], running: set[Key]) -> None:
    assert isinstance(event, TokenEvent), event
    key = (event.request_id, event.index)
    assert key in running, f"an event after the end: {event}"
    outcome = outcomes[key]
    if event.token_id is not None:
        outcome.tokens.append(event.token_id)
    if event.finish_reason is not None:
        outcome.reason = event.finish_reason
        running.remove(key)
