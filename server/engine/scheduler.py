"""Chooses which tokens run next and applies what came back.

Here: Scheduler. Not here: HTTP, text, the catalog, tensor maths.
"""

import math
import time
from collections import Counter, deque
from dataclasses import dataclass

import torch

from adapters_store.errors import AdapterdError, EngineFailed
from server.adapters.residency import Residency
from server.engine.messages import Failed, FinishReason, Timing, TokenEvent
from server.engine.pace import StepPace
from server.engine.plan import Chunk, StepPlan, build_plan
from server.engine.prefix_cache import PrefixCache
from server.engine.prompt_lookup import PromptLookup
from server.engine.sampler import Sampled, SampledToken
from server.engine.sequence import Phase, Sequence
from server.kernels.segments import SegmentPlan

MAX_OVERTAKES = 64
"""So often may later arrivals take slots past one that waits for a slot; then they wait too."""

MAX_FILLS = 1
"""So many slots may be filled between two steps while streams run, which wait for each copy (3 ms
for rank 16 on all linears of a base of 135 million parameters, a tenth of what its steps take) and
for the prompt that comes with it."""

SETTLED_TOKENS = 8
"""A stream that has had so many is running; before, it is still one of those that arrived with it.

Prompts that arrive all at once are read in full steps, though the first of them answer already.
"""

_NOT_FINITE = (
    "the model's output was not finite (NaN or infinity); the adapter's weights, or the prompt, "
    "overflow this server's dtype: try --dtype float32 or bfloat16"
)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds on one step and on what runs at once."""

    max_batch_tokens: int
    max_sequences: int
    block_size: int
    max_prefill_slowdown: float | None = None  # of running streams; None: prompts fill every step
    speculative_tokens: int = 0  # drafts per sequence and step, at most
    pad_rows: bool = True  # of steps, to few sizes


class Scheduler:
    """Continuous batching: decodes first, then chunks of prompts, then drafts, in a token budget.

    Must stay true: a sequence is in exactly one of waiting and running until it is over; only
    sequences that are not over hold blocks or a lease, and each gives them back exactly once.
    A pre-empted sequence keeps its lease, so that it cannot lose its place to a later one.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        cache: PrefixCache,
        residency: Residency,
        eos_token_ids: frozenset[int],
        device: torch.device,
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._residency = residency
        self._eos = eos_token_ids
        self._device = device
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of arrival
        self._pace = StepPace()
        self._segments: SegmentPlan | None = None  # of the latest step
        self.preemptions = 0
        self.drafts = 0  # times that a sequence had drafts in a step
        self.drafted_tokens = 0
        self.accepted_tokens = 0  # of those

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    def awaited(self) -> frozenset[str]:
        """Digests that a waiting sequence needs in a slot."""
        lacking = (sequence.adapter for sequence in self._waiting if sequence.lease is None)
        return frozenset(digest for digest in lacking if digest is not None)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence, and starts to read its adapter at once."""
        if sequence.adapter is not None:
            self._residency.request(sequence.adapter)
        sampling = sequence.sampling
        eos = frozenset() if sampling.ignore_eos else self._eos
        sequence.stop_ids = eos.union(sampling.stop_token_ids)
        if self._limits.speculative_tokens:
            sequence.lookup = PromptLookup(self._limits.speculative_tokens)
        self._waiting.append(sequence)

    def schedule(self) -> StepPlan | None:
        """The next step, or None when nothing can run now."""
        self._residency.allow_fills(MAX_FILLS if self._running else math.inf)
        room = self._prompt_room()
        chunks = self._continue_running(room)
        spent = sum(chunk.count for chunk in chunks)
        read = sum(chunk.count for chunk in chunks if chunk.count > 1)
        chunks += self._admit(min(self._limits.max_batch_tokens - spent, room - read))
        if not chunks:
            return None
        if self._limits.speculative_tokens:
            chunks += self._drafts(chunks)
        plan = build_plan(
            chunks,
            self._residency.ranks,
            self._limits.block_size,
            self._device,
            self._segments,
            pad=self._limits.pad_rows,
        )
        self._segments = plan.segments
        return plan

    def took(self, plan: StepPlan, seconds: float) -> float:
        """How long a step took; later ones are sized by it. Returns what was to be expected."""
        prompt_tokens = plan.tokens - plan.decodes
        expected = self._pace.expected(plan.decodes, prompt_tokens)
        self._pace.observe(plan.decodes, prompt_tokens, seconds)
        return expected

    def apply(self, plan: StepPlan, sampled: Sampled) -> list[TokenEvent | Failed]:
        """Appends a step's tokens, ends what they end, and returns the events in row order.

        A draft's row counts if all rows ahead of it said what was drafted. It has then been
        sampled from the very tokens that a plain decode would have sampled it from.
        """
        now = time.perf_counter()
        for chunk in plan.chunks:
            if not chunk.drafted:
                chunk.sequence.computed += chunk.count
        events: list[TokenEvent | Failed] = []
        rejected: list[tuple[Chunk, SampledToken | None]] = []
        for chunk, token in zip(plan.sampled, sampled.tokens, strict=True):
            sequence = chunk.sequence
            if chunk.drafted:
                if sequence.phase is not Phase.RUNNING or not chunk.came_true:
                    rejected.append((chunk, token))
                    continue
                sequence.computed += 1
            events.append(self._apply_token(sequence, token, now))
        if self._limits.speculative_tokens:
            self._learn(plan, rejected)
        for chunk in plan.chunks:
            if chunk.sequence.phase is Phase.RUNNING:
                self._cache.keep(chunk.sequence)
        return events

    def _learn(self, plan: StepPlan, rejected: list[tuple[Chunk, SampledToken | None]]) -> None:
        """Counts the step's drafts, and tells each sequence how its own fared."""
        drafted = Counter(chunk.sequence for chunk in plan.sampled if chunk.drafted)
        missed = Counter(chunk.sequence for chunk, _ in rejected)
        self.drafts += len(drafted)
        self.drafted_tokens += drafted.total()
        self.accepted_tokens += drafted.total() - missed.total()
        for sequence, count in drafted.items():
            if sequence.lookup is not None:
                sequence.lookup.learn(count, count - missed[sequence])
        for sequence in {chunk.sequence for chunk, token in rejected if token is None}:
            if sequence.phase is Phase.RUNNING:
                # What a rejected draft leaves in a block is masked, but a masked NaN would spread:
                # the sequence goes on from clean blocks, and guesses no more.
                sequence.lookup = None
                self._preempt(sequence)

    def _apply_token(
        self, sequence: Sequence, sampled: SampledToken | None, now: float
    ) -> TokenEvent | Failed:
        if sampled is None:
            self.end(sequence, spoilt=True)
            return Failed(sequence.request_id, EngineFailed.code, _NOT_FINITE)
        sequence.tokens.append(sampled.token_id)
        length = sequence.output_length
        reason = _finish_reason(sequence, sampled.token_id, length)
        if reason is not None:
            self.end(sequence)
        first = length == 1
        return TokenEvent(
            sequence.request_id,
            sequence.index,
            sampled.token_id,
            reason,
            sampled.logprob,
            sampled.top_logprobs,
            timing=_timing(sequence, now) if first else None,
            cached_tokens=sequence.cached_tokens if first else None,
        )

    def end(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        """Takes a sequence out, whatever it was doing, and releases all it holds.

        `spoilt`: what it computed may be wrong, and must not be found by others.
        """
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        elif sequence.phase is Phase.RUNNING:
            self._running.remove(sequence)
        else:
            raise ValueError(f"sequence {sequence.key} is over already")
        sequence.phase = Phase.OVER
        if spoilt:
            self._cache.discard(sequence)
        else:
            self._cache.release(sequence)
        if sequence.lease is not None:
            self._residency.release(sequence.lease)
            sequence.lease = None

    def fail_loads(self, failed: dict[str, AdapterdError]) -> list[tuple[Sequence, AdapterdError]]:
        """Ends the waiting sequences whose adapters could not be read, and nobody else."""
        lost = [s for s in self._waiting if s.adapter in failed and s.lease is None]
        for sequence in lost:
            self.end(sequence)
        return [(sequence, failed[sequence.adapter or ""]) for sequence in lost]

    def check(self) -> None:
        """Recounts blocks and leases against the sequences. Raises AssertionError on drift."""
        everyone = [*self._waiting, *self._running]
        assert len({sequence.key for sequence in everyone}) == len(everyone)
        self._cache.check(everyone)
        self._residency.check()
        leases = [sequence.lease for sequence in everyone if sequence.lease is not None]
        assert len(leases) == self._residency.slots.leases, "a lease has no sequence"
        assert all(s.lease is not None for s in self._running if s.adapter is not None)
        assert all(s.phase is Phase.WAITING and not s.block_table for s in self._waiting)
        assert all(s.phase is Phase.RUNNING for s in self._running)

    def _prompt_room(self) -> int:
        """Tokens of prompts that the next step may have, over all sequences.

        While streams run, so many that their next token comes at most max_prefill_slowdown times
        as late as without, for one prompt; each further prompt adds as much again.
        """
        most, slowdown = self._limits.max_batch_tokens, self._limits.max_prefill_slowdown
        decoding = [s for s in self._running if s.uncomputed == 1]
        if slowdown is None or all(s.output_length < SETTLED_TOKENS for s in decoding):
            return most
        places = self._limits.max_sequences - len(self._running)
        prompts = len(self._running) - len(decoding) + min(len(self._waiting), places)
        return self._pace.room(len(decoding), 1 + (slowdown - 1) * prompts, most)

    def _continue_running(self, room: int) -> list[Chunk]:
        """Chunks for what runs already: decodes before prompts, earlier arrivals first.

        `room`: tokens of prompts, of which a step can have fewer than of all.
        """
        chunks: list[Chunk] = []
        budget = self._limits.max_batch_tokens
        for sequence in sorted(self._running, key=lambda s: s.uncomputed > 1):
            reads = sequence.uncomputed > 1
            count = min(sequence.uncomputed, budget, room if reads else budget)
            if sequence.phase is not Phase.RUNNING or not count:
                continue  # pre-empted a moment ago by an earlier one, or no room in this step
            end = sequence.computed + count
            held = len(sequence.block_table) * self._limits.block_size
            if end > held and not self._make_room(sequence, end, chunks):
                continue
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget -= count
            room -= count if reads else 0
        return chunks

    def _make_room(self, sequence: Sequence, tokens: int, chunks: list[Chunk]) -> bool:
        """Blocks for its first `tokens` tokens, pre-empting later arrivals if need be.

        False if `sequence` itself had to go: nobody later was left to pre-empt.
        """
        missing = sequence.blocks_for(tokens, self._limits.block_size)
        while missing > self._cache.available:
            victim = self._running[-1]
            self._preempt(victim)
            chunks[:] = [chunk for chunk in chunks if chunk.sequence is not victim]
            if victim is sequence:
                return False
        self._cache.extend(sequence, tokens)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, its blocks freed; its tokens will be computed again,
        but for those that are still cached by then."""
        self._running.remove(sequence)
        self._cache.release(sequence)
        sequence.phase = Phase.WAITING
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self, budget: int) -> list[Chunk]:
        """First chunks for waiting sequences, in order of arrival.

        A sequence whose adapter is still being read, or has no slot to go to, does not hold up
        those behind it; but it is not overtaken for a slot more than MAX_OVERTAKES times. Where a
        slot may be filled in a later step only, whoever came first has the first of that step.
        Blocks are different: who waits for blocks is waited for, lest long prompts starve.
        """
        chunks: list[Chunk] = []
        slot_waiters: list[Sequence] = []
        for sequence in tuple(self._waiting):
            if not budget or len(self._running) >= self._limits.max_sequences:
                break
            if not self._adapter_at_hand(sequence):
                continue
            if not self._cache.fits(sequence, len(sequence.tokens) + 1):
                break
            if not self._lease_for(sequence, slot_waiters):
                continue
            self._cache.begin(sequence)
            count = min(sequence.uncomputed, budget)
            self._cache.extend(sequence, sequence.computed + count)
            self._start(sequence)
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget -= count
        return chunks

    def _drafts(self, chunks: list[Chunk]) -> list[Chunk]:
        """Guesses at what the decodes among `chunks` say next, with what is left of the budget.

        Everything else in the step has its rows and blocks by now. Nobody is pre-empted for a
        guess, and it takes no block but those that the running could do without.
        """
        drafts: list[Chunk] = []
        budget = self._limits.max_batch_tokens - sum(chunk.count for chunk in chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.lookup is None or chunk.count > 1 or not chunk.samples:
                continue
            room = min(budget - len(drafts), self._room_for_drafts(sequence))
            guess = sequence.lookup.propose(sequence.tokens, room)
            if guess:
                self._cache.extend(sequence, len(sequence.tokens) + len(guess))
                drafts += [
                    Chunk(sequence, chunk.start + ahead, 1, guess[:ahead])
                    for ahead in range(1, len(guess) + 1)
                ]
        return drafts

    def _room_for_drafts(self, sequence: Sequence) -> int:
        """Drafts that could still be wanted (the last row's token is no draft), and have a place.

        As max_tokens was admitted, none is beyond the longest context.
        """
        wanted = sequence.sampling.max_tokens - sequence.output_length - 1
        spare = max(0, self._cache.available - len(self._running))
        held = len(sequence.block_table) + spare
        return min(wanted, held * self._limits.block_size - len(sequence.tokens))

    def _adapter_at_hand(self, sequence: Sequence) -> bool:
        """Whether at most a slot is missing, to be filled now; if more is, it is being read."""
        if sequence.adapter is None or sequence.lease is not None:
            return True
        if not self._residency.prepare(sequence.adapter):
            return False
        if sequence.adapter_ready_s is None:
            sequence.adapter_ready_s = time.perf_counter()
        return True

    def _lease_for(self, sequence: Sequence, slot_waiters: list[Sequence]) -> bool:
        """Whether `sequence` has the slot it needs, taking a lease if it can.

        `slot_waiters` are the earlier ones that found no slot in this step.
        """
        if sequence.adapter is None or sequence.lease is not None:
            return True
        if not any(waiter.overtaken >= MAX_OVERTAKES for waiter in slot_waiters):
            sequence.lease = self._residency.try_lease(sequence.adapter)
        if sequence.lease is None:
            slot_waiters.append(sequence)
            return False
        for waiter in slot_waiters:
            waiter.overtaken += 1
        return True

    def _start(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        sequence.phase = Phase.RUNNING
        if sequence.scheduled_s is None:
            sequence.scheduled_s = time.perf_counter()
        place = sum(1 for other in self._running if other.arrived_s <= sequence.arrived_s)
        self._running.insert(place, sequence)


def _finish_reason(sequence: Sequence, token: int, length: int) -> FinishReason | None:
    """Why the output, `length` tokens with `token` as its last, ends here; None if it does not."""
    if token in sequence.stop_ids and length >= sequence.sampling.min_tokens:
        return "stop"
    return "length" if length >= sequence.sampling.max_tokens else None


def _timing(sequence: Sequence, now: float) -> Timing:
    scheduled = sequence.scheduled_s or now
    ready = sequence.adapter_ready_s or sequence.arrived_s
    return Timing(
        queue_s=scheduled - sequence.arrived_s,
        load_s=max(0.0, ready - sequence.arrived_s),
        prefill_s=now - scheduled,
    )
