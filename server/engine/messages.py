"""What crosses between the API process and the engine process: plain, immutable data.

Frames on the socket are these dataclasses as msgpack (see wire.py). Token ids only, never text;
an adapter only by its digest.
"""

from dataclasses import dataclass, field
from typing import Literal

from adapters_store.content import LinearShape

FinishReason = Literal["stop", "length", "abort"]
SlotLevel = Literal["slot", "host"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine is told, once, at its start."""

    model: str  # folder or hub id
    blobs: str  # folder or URL that holds adapter versions by digest
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    max_resident_adapters: int = 8
    max_rank: int | None = None  # of an adapter; None: what slots have room for
    slot_bytes: int | None = None  # of all slots; None: each has room for max_rank, or for 64
    max_model_len: int | None = None  # tokens; None: the base's own
    kv_cache_bytes: int | None = None  # None: sized from free memory
    max_batch_tokens: int = 512  # per step
    max_sequences: int = 64  # running at once
    max_prefill_slowdown: float | None = 1.8  # of running streams; None: prompts fill every step
    block_size: int = 16  # tokens per KV block
    speculative_tokens: int = 0  # guessed per sequence and step, at most; 0: none
    prefix_cache: bool = True
    host_cache_bytes: int = 1 << 30
    eviction: Literal["lru", "lfu", "cost"] = "lru"  # who leaves a full tier of adapters
    threads: int | None = None  # torch's; None: its default
    kernels: Literal["auto", "torch"] = "auto"  # auto: native or Triton ones, where there are any
    quantization: Literal["none", "int8"] = "none"  # of linear modules; int8: native kernels only
    cuda_graphs: bool = True  # decode steps are captured and replayed, on CUDA
    blob_cache: str = ""  # folder for copies of what rests at a URL
    blob_cache_bytes: int = 10 << 30  # of copies, at most


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen. Bounds are checked before they get here."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives wanted per token; 0: the chosen one's only


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to continue `n` times under one adapter version (None: the base)."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    adapter: str | None = None  # version digest
    n: int = 1
    cache_salt: str = ""  # KV blocks are shared only with requests of the same salt


# --- API process → engine ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Submit:
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str
    index: int | None = None  # which of the request's n; None: all of it


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop at once; the sender has let its requests finish already."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Bring an adapter to this tier, or a nearer one; answered by Done or Failed."""

    request_id: str
    digest: str
    to: SlotLevel = "slot"


@dataclass(frozen=True, slots=True)
class Pin:
    """Bring an adapter to a slot, where it stays; answered by Done or Failed."""

    request_id: str
    digest: str
    ttl_s: float | None = None  # from when it is there; None: until it is unpinned


@dataclass(frozen=True, slots=True)
class Unpin:
    """Let an adapter go when its slot is needed; answered by Done, pinned or not."""

    request_id: str
    digest: str


# --- engine → API process ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The base is being loaded: `done` of `total`, in the unit that `what` names."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was measured and decided while the base was loaded."""

    architecture: str
    digest: str  # of the base's files
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    kv_blocks: int
    block_size: int
    parameters: int
    kernels: str  # what computes the hot parts: "native-avx512-bf16", "torch"
    quantization: str  # of linear modules: "none", "int8"
    modules: dict[str, LinearShape]  # targetable modules of the base
    norms: dict[str, float]  # Frobenius, of their weights
    slot_rows: int  # that all slots share: an adapter takes one for each of its ranks
    slot_row_bytes: int  # of one of them, over all modules
    load_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in seconds; sent with its first token."""

    queue_s: float  # arrival → first scheduled, loading included
    load_s: float  # of that, waiting for the adapter
    prefill_s: float  # first scheduled → first token


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One more token of one sequence, or its end.

    `token_id` is None when the sequence ends without a further token (abort). The token that
    ended a sequence by "stop" is reported too, with the reason, and is no part of the text.
    """

    request_id: str
    index: int  # which of the request's n sequences
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    timing: Timing | None = None  # with the sequence's first token
    cached_tokens: int | None = None  # of the prompt, found in the prefix cache; likewise


@dataclass(frozen=True, slots=True)
class Tokens:
    """All of one step's events."""

    events: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """A Prefetch, Pin or Unpin is done. The latest Stats show it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A request is over without a result. `code` names a class of adapters_store/errors.py."""

    request_id: str | None  # None: the engine itself could not start
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Gauges and running totals since the engine's start; sent a few times a second."""

    running: int = 0  # sequences
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    preemptions: int = 0
    drafts: int = 0  # times that a sequence had guesses in a step
    drafted_tokens: int = 0  # guesses in all
    accepted_tokens: int = 0  # of those, came true
    prefix_queries: int = 0  # tokens of prompts that were looked up in the prefix cache
    prefix_hits: int = 0  # of those, tokens found
    steps: int = 0
    step_tokens: int = 0  # total over all steps
    step_segments: int = 0  # total over all steps
    step_s: float = 0.0  # total
    slot_hits: int = 0
    slot_misses: int = 0
    slot_evictions: int = 0
    slot_leases: int = 0  # held now
    slot_rows_used: int = 0
    slot_rows_total: int = 0
    host_hits: int = 0
    host_misses: int = 0
    host_evictions: int = 0
    host_bytes: int = 0
    failed_loads: int = 0
    load_s: dict[str, float] = field(default_factory=dict)  # total by tier: "disk", "host"
    loads: dict[str, int] = field(default_factory=dict)
    residency: dict[str, SlotLevel] = field(default_factory=dict)  # digest → nearest tier
    load_times: dict[str, dict[str, float]] = field(default_factory=dict)  # digest → as `load_s`
    pinned: tuple[str, ...] = ()  # digests that keep their slots
    running_adapters: tuple[str, ...] = ()  # digests resident in slots
    waiting_adapters: tuple[str, ...] = ()  # digests that queued requests wait for


ToEngine = Start | Submit | Abort | Shutdown | Prefetch | Pin | Unpin
FromEngine = LoadProgress | Ready | Tokens | Failed | Stats | Done
