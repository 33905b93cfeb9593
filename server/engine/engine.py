"""The engine: requests in, token events out, one step at a time. One thread calls it.

Here: Engine, and what is decided once at its start. Not here: HTTP, text, the catalog, processes.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adapters_store.content import AdapterSource, BaseModel
from adapters_store.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineStartFailed,
    InvalidRequest,
)
from server.adapters.loading import LoaderThreads, LoadTarget, OpenLoader
from server.adapters.methods import METHODS
from server.adapters.methods.base import BoundMethod
from server.adapters.prefetch import Answer, Prefetcher
from server.adapters.residency import Residency
from server.adapters.slot_rows import SlotLimits, slot_limits
from server.engine.base import LoadedBase, load_base, self_check
from server.engine.base_files import digest_files, resolve_model, weight_files
from server.engine.cuda_graphs import CudaCapture
from server.engine.kv_cache import BlockPool, KVCache
from server.engine.messages import (
    Done,
    EngineConfig,
    EngineInfo,
    Failed,
    GenerationRequest,
    LoadProgress,
    Pin,
    Prefetch,
    SamplingParams,
    SlotLevel,
    Stats,
    TokenEvent,
    Unpin,
)
from server.engine.native_layer import attach
from server.engine.plan import Chunk, StepPlan, build_plan
from server.engine.prefix_cache import PrefixCache
from server.engine.runner import Runner
from server.engine.sampler import sample
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.sequence import Phase, Sequence
from server.kernels.backend import default_backend
from server.kernels.triton import usable as triton_usable

MAX_FAILED_STEPS = 3
"""So many steps in a row may raise before the engine gives itself up, to be started afresh."""

LOAD_WAIT_S = 0.05

LOAD_SHARE = 0.2
"""Of a step's time. Where steps use every core, loaders have so much to themselves after it."""

KV_SHARE_OF_FREE_MEMORY = 0.4


class Engine:
    """One base in memory, its scheduler and its slots.

    Must stay true: every submitted request ends in events whose last for each of its sequences
    has a finish_reason, or in one Failed.
    """

    def __init__(
        self,
        config: EngineConfig,
        source: AdapterSource | OpenLoader,
        *,
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        """Loads the base. A source is read by threads of this process. Raises EngineStartFailed."""
        started = time.perf_counter()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        folder = resolve_model(config.model)
        base, digest = _loaded(folder, config, on_progress or (lambda _: None))
        self._base = base
        blocks = _kv_blocks(config, base)
        max_model_len = _max_model_len(config, base, blocks)
        cache = _kv_cache(config, base, blocks)
        spec = BaseModel(Path(config.model).name, digest, base.architecture, base.shapes)
        slots = _slot_limits(config, base)
        bound = _bind_methods(config, base, slots)
        self._block_size = config.block_size
        self._pool = BlockPool(blocks + 1, cache.wipe)
        self._prefixes = PrefixCache(
            self._pool, config.block_size, digest, enabled=config.prefix_cache
        )
        open_loader = source if callable(source) else partial(LoaderThreads, source)
        self._residency = Residency(
            open_loader(LoadTarget(spec, slots, base.dtype)),
            bound,
            limits=slots,
            host_cache_bytes=config.host_cache_bytes,
            eviction=config.eviction,
        )
        self._prefetcher = Prefetcher(self._residency)
        self._replies: list[Done | Failed] = []
        limits = SchedulerLimits(
            config.max_batch_tokens,
            config.max_sequences,
            config.block_size,
            config.max_prefill_slowdown,
            config.speculative_tokens,
            pad_rows=base.pads_rows,
        )
        self._scheduler = Scheduler(
            limits, self._prefixes, self._residency, base.eos_token_ids, base.device
        )
        attach(base)
        self._runner = _runner(config, base, cache, tuple(bound.values()))
        self._requests: dict[str, list[Sequence]] = {}  # those of its sequences that are not over
        self._uses_every_core = _uses_every_core(base.device)
        self._failed_steps = 0
        self._steps = self._step_tokens = self._step_segments = 0
        self._step_s = 0.0
        self_check(base, self._paged_logits)
        cache.touch()
        load_s = time.perf_counter() - started
        self.info = _info(config, base, slots, digest, max_model_len, blocks, load_s)

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request. Raises InvalidRequest or ContextLengthExceeded, and keeps nothing."""
        self._refuse_unfit(request)
        now = time.perf_counter()
        seed = request.sampling.seed
        seeds = seed if seed is not None else secrets.randbits(48)
        sequences = [
            Sequence(
                request_id=request.id,
                index=index,
                prompt_length=len(request.prompt),
                tokens=list(request.prompt),
                sampling=request.sampling,
                adapter=request.adapter,
                seed=seeds + index,
                arrived_s=now,
                cache_salt=request.cache_salt,
            )
            for index in range(request.n)
        ]
        self._requests[request.id] = sequences
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request now, or one of its sequences, without a further event.

        Unknown ids are over already: no error.
        """
        self._end(request_id, index)

    def arrange(self, wish: Prefetch | Pin | Unpin) -> None:
        """Begins what is asked; `replies` says how it ended. Raises Conflict: no slot to pin."""
        if isinstance(wish, Prefetch):
            self._prefetcher.prefetch(wish.request_id, wish.digest, wish.to)
        elif isinstance(wish, Pin):
            self._prefetcher.pin(wish.request_id, wish.digest, wish.ttl_s)
        else:
            self._prefetcher.unpin(wish.digest)
            self._replies.append(Done(wish.request_id))

    def replies(self) -> list[Done | Failed]:
        """Those to `arrange` that are due, each given once."""
        due, self._replies = self._replies, []
        return due

    def has_work(self) -> bool:
        return bool(self._requests) or self._prefetcher.has_work

    def idle_s(self) -> float | None:
        """Seconds until there is work without anybody's asking; None: for ever."""
        return self._prefetcher.idle_s()

    def step(self) -> list[TokenEvent | Failed]:
        """One forward pass, or a short wait for an adapter that is being read.

        Raises EngineFailed after MAX_FAILED_STEPS failed steps in a row: start a new engine.
        """
        events = self._lost_to_loads()
        plan = self._scheduler.schedule()
        self._reply(self._prefetcher.settle())  # requests have chosen their slots
        if plan is None:
            if self.has_work():
                self._residency.wait(LOAD_WAIT_S)
            return events
        started = time.perf_counter()
        try:
            logits = self._runner.run(plan)
            sampled = sample(logits, plan.sampled)
        except Exception as error:  # whatever torch raises ends this step's requests, no others
            return events + self._fail_step(plan, error)
        self._failed_steps = 0
        events += self._settled(self._scheduler.apply(plan, sampled))
        seconds = time.perf_counter() - started
        expected = self._scheduler.took(plan, seconds)
        self._count(plan, seconds)
        if self._uses_every_core and plan.decodes == len(plan.chunks):
            # Not after a step that a prompt or anything else made longer: one of them at a time.
            self._residency.wait(max(0.0, (1 + LOAD_SHARE) * expected - seconds))
        return events

    def stats(self) -> Stats:
        """Gauges and totals as of now."""
        counts = self._residency.counts()
        resident = self._residency.slots.resident
        levels: dict[str, SlotLevel] = dict.fromkeys(self._residency.host.digests, "host")
        levels |= dict.fromkeys(resident, "slot")
        waiting = self._scheduler.waiting
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(waiting),
            kv_blocks_used=self._prefixes.used,
            kv_blocks_total=self._pool.total,
            preemptions=self._scheduler.preemptions,
            drafts=self._scheduler.drafts,
            drafted_tokens=self._scheduler.drafted_tokens,
            accepted_tokens=self._scheduler.accepted_tokens,
            prefix_queries=self._prefixes.queried_tokens,
            prefix_hits=self._prefixes.hit_tokens,
            steps=self._steps,
            step_tokens=self._step_tokens,
            step_segments=self._step_segments,
            step_s=self._step_s,
            slot_hits=counts.slot_hits,
            slot_misses=counts.slot_misses,
            slot_evictions=counts.slot_evictions,
            slot_leases=self._residency.slots.leases,
            slot_rows_used=self._residency.slots.rows_used,
            slot_rows_total=self._residency.slots.rows,
            host_hits=counts.host_hits,
            host_misses=counts.host_misses,
            host_evictions=counts.host_evictions,
            host_bytes=self._residency.host.bytes,
            failed_loads=counts.failed_loads,
            load_s=counts.load_s,
            loads=counts.loads,
            residency=levels,
            load_times=self._residency.load_times(),
            pinned=self._residency.slots.pinned,
            running_adapters=resident,
            waiting_adapters=tuple({s.adapter for s in waiting if s.adapter is not None}),
        )

    def check(self) -> None:
        """Recounts every structure. Raises AssertionError on drift."""
        self._scheduler.check()
        self._prefetcher.check()
        alive = {s.key for s in (*self._scheduler.running, *self._scheduler.waiting)}
        known = {s.key for sequences in self._requests.values() for s in sequences}
        assert alive == known, "a request is lost, or a sequence has no request"

    def close(self) -> None:
        """Stops the loader threads. The engine is of no use afterwards."""
        self._residency.close()

    def _refuse_unfit(self, request: GenerationRequest) -> None:
        if request.id in self._requests:
            raise InvalidRequest(f"a request with the id {request.id!r} is running", param="id")
        if not request.prompt:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
        worst = max(request.prompt)
        if worst >= self.info.vocab_size or min(request.prompt) < 0:
            raise InvalidRequest(
                f"the prompt holds a token id outside 0 to {self.info.vocab_size - 1}",
                param="prompt",
            )
        length, room = len(request.prompt), self.info.max_model_len
        if length + request.sampling.max_tokens > room:
            raise ContextLengthExceeded(
                f"the context is {room} tokens; the prompt's {length} and max_tokens "
                f"{request.sampling.max_tokens} are {length + request.sampling.max_tokens}",
                param="prompt" if length >= room else "max_tokens",
            )

    def _end(self, request_id: str, index: int | None = None, *, spoilt: bool = False) -> None:
        sequences = self._requests.get(request_id, [])
        for sequence in [s for s in sequences if index in (None, s.index)]:
            if sequence.phase is not Phase.OVER:
                self._scheduler.end(sequence, spoilt=spoilt)
            sequences.remove(sequence)
        if not sequences:
            self._requests.pop(request_id, None)

    def _lost_to_loads(self) -> list[TokenEvent | Failed]:
        events: dict[str, Failed] = {}
        failed = self._residency.collect(self._awaited)
        self._reply(self._prefetcher.fail_loads(failed))
        for sequence, error in self._scheduler.fail_loads(failed):
            events[sequence.request_id] = Failed(sequence.request_id, error.code, error.message)
            self.abort(sequence.request_id)
        return list(events.values())

    def _awaited(self) -> frozenset[str]:
        return self._scheduler.awaited() | self._prefetcher.awaited

    def _reply(self, answers: list[Answer]) -> None:
        for answer in answers:
            error = answer.error
            self._replies.append(
                Done(answer.request_id)
                if error is None
                else Failed(answer.request_id, error.code, error.message, error.param)
            )

    def _fail_step(self, plan: StepPlan, error: Exception) -> list[TokenEvent | Failed]:
        self._failed_steps += 1
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise EngineFailed(f"{MAX_FAILED_STEPS} steps in a row failed: {error}") from error
        message = f"the step this request was in failed: {type(error).__name__}: {error}"
        events: list[TokenEvent | Failed] = []
        for request_id in dict.fromkeys(chunk.sequence.request_id for chunk in plan.chunks):
            self._end(request_id, spoilt=True)
            events.append(Failed(request_id, EngineFailed.code, message))
        return events

    def _settled(self, events: list[TokenEvent | Failed]) -> list[TokenEvent | Failed]:
        """Takes ended sequences out of their requests, and the events that are still due.

        A failed sequence takes its siblings along; what came of them in the same step is dropped.
        """
        due: list[TokenEvent | Failed] = []
        for event in events:
            if event.request_id is None or event.request_id not in self._requests:
                continue
            due.append(event)
            if isinstance(event, Failed):
                self._end(event.request_id, spoilt=True)
            elif event.finish_reason is not None:
                sequences = self._requests[event.request_id]
                sequences[:] = [s for s in sequences if s.index != event.index]
                if not sequences:
                    del self._requests[event.request_id]
        return due

    def _count(self, plan: StepPlan, seconds: float) -> None:
        self._steps += 1
        self._step_tokens += plan.tokens
        self._step_segments += len(plan.segments.items)
        self._step_s += seconds

    def _paged_logits(self, prompts: list[list[int]]) -> list[Tensor]:
        """The last token's logits [vocab] of each prompt, all run as one flat batch."""
        size = self._block_size
        chunks = []
        for index, prompt in enumerate(prompts):
            sequence = Sequence("self-check", index, len(prompt), prompt, _GREEDY, None, 0, 0.0)
            self._prefixes.extend(sequence, len(prompt))
            chunks.append(Chunk(sequence, 0, len(prompt)))
        try:
            plan = build_plan(chunks, self._residency.ranks, size, self._base.device)
            logits = self._runner.run(plan)
        finally:
            for chunk in chunks:
                self._prefixes.release(chunk.sequence)
        row_of = {chunk.sequence.index: row for row, chunk in enumerate(plan.sampled)}
        return [logits[row_of[index]] for index in range(len(prompts))]


def _uses_every_core(device: torch.device) -> bool:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return device.type == "cpu" and torch.get_num_threads() >= cores


_GREEDY = SamplingParams(max_tokens=1, temperature=0.0)


def _loaded(
    folder: Path, config: EngineConfig, progress: Callable[[LoadProgress], None]
) -> tuple[LoadedBase, str]:
    """The base, and its digest, which is taken beside. Raises EngineStartFailed."""
    weight_files(folder)  # says what is missing before anything is loaded
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(
            digest_files, folder, lambda n, of: progress(LoadProgress("digest", n, of))
        )
        return load_base(folder, config, progress), digest.result()


def _kv_cache(config: EngineConfig, base: LoadedBase, blocks: int) -> KVCache:
    """The cache, with the null block beside the `blocks` that are handed out."""
    return KVCache(
        base.layers,
        blocks=blocks + 1,
        block_size=config.block_size,
        dtype=base.dtype,
        device=base.device,
    )


def _info(
    config: EngineConfig,
    base: LoadedBase,
    slots: SlotLimits,
    digest: str,
    max_model_len: int,
    blocks: int,
    load_s: float,
) -> EngineInfo:
    return EngineInfo(
        architecture=base.architecture,
        digest=digest,
        dtype=str(base.dtype).removeprefix("torch."),
        device=str(base.device),
        vocab_size=base.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=tuple(sorted(base.eos_token_ids)),
        kv_blocks=blocks,
        block_size=config.block_size,
        parameters=base.parameters,
        kernels=_kernels_name(config, base),
        quantization=config.quantization,
        modules=base.shapes,
        norms=base.norms,
        slot_rows=slots.rows,
        slot_row_bytes=slots.row_bytes,
        load_s=load_s,
    )


def _triton(config: EngineConfig, base: LoadedBase) -> bool:
    """Whether attention and the low-rank path run on the Triton kernels."""
    return config.kernels == "auto" and triton_usable(base.device)


def _kernels_name(config: EngineConfig, base: LoadedBase) -> str:
    if base.kernels is not None:
        return f"native-{base.kernels.name}"
    return "triton" if _triton(config, base) else "torch"


def _runner(
    config: EngineConfig, base: LoadedBase, cache: KVCache, bound: tuple[BoundMethod, ...]
) -> Runner:
    """The runner, with CUDA graphs where they can be."""
    triton = _triton(config, base)
    capture = CudaCapture(base.device) if triton and config.cuda_graphs else None
    return Runner(base, cache, bound, triton=triton, capture=capture)


def _slot_limits(config: EngineConfig, base: LoadedBase) -> SlotLimits:
    """Slots as they were asked for. Raises EngineStartFailed if they would hold nothing."""
    try:
        return slot_limits(
            base.shapes.values(),
            base.dtype,
            slots=config.max_resident_adapters,
            max_rank=config.max_rank,
            slot_bytes=config.slot_bytes,
        )
    except ValueError as error:
        raise EngineStartFailed(f"--slot-bytes {config.slot_bytes}: {error}") from error


def _bind_methods(
    config: EngineConfig, base: LoadedBase, limits: SlotLimits
) -> dict[str, BoundMethod]:
    """Every kind, bound to this base, by its name."""
    backend = default_backend(base.device, base.kernels, triton=_triton(config, base))
    return {
        method.kind: method.bind(
            base.linears, limits=limits, dtype=base.dtype, device=base.device, backend=backend
        )
        for method in METHODS.values()
    }


def _kv_blocks(config: EngineConfig, base: LoadedBase) -> int:
    """Blocks that the KV cache gets: as told, or a share of free memory, but never more than
    all sequences at full length could use. Raises EngineStartFailed if it is too little."""
    block_bytes = KVCache.bytes_per_block(base.layers, config.block_size, base.dtype)
    longest = config.max_model_len or base.max_positions
    useful = config.max_sequences * -(-longest // config.block_size)
    budget = config.kv_cache_bytes
    if budget is None:
        budget = int(_free_memory(base.device) * KV_SHARE_OF_FREE_MEMORY)
    blocks = min(budget // block_bytes, useful)
    if blocks < 1:
        raise EngineStartFailed(
            f"the KV cache gets {budget} bytes, but one block of {config.block_size} tokens takes "
            f"{block_bytes}; raise --kv-cache-bytes"
        )
    return blocks


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _max_model_len(config: EngineConfig, base: LoadedBase, blocks: int) -> int:
    """Tokens that one sequence may have. Raises EngineStartFailed if what was asked cannot be."""
    held = blocks * config.block_size
    asked = config.max_model_len
    if asked is None:
        return min(base.max_positions, held)
    if asked > base.max_positions:
        raise EngineStartFailed(
            f"--max-model-len {asked} is over the {base.max_positions} positions that "
            f"{base.architecture} was made for; lower it"
        )
    if asked > held:
        raise EngineStartFailed(
            f"--max-model-len {asked} is over the {held} tokens that the KV cache holds; lower it, "
            "or raise --kv-cache-bytes"
        )
    return asked
