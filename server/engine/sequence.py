"""One stream of tokens being generated, and all that it holds."""

from dataclasses import dataclass, field
from enum import Enum, auto

from server.adapters.slots import SlotLease
from server.engine.messages import SamplingParams
from server.engine.prompt_lookup import PromptLookup


class Phase(Enum):
    """Where a sequence stands. Pre-emption leads from RUNNING back to WAITING."""

    WAITING = auto()
    RUNNING = auto()
    OVER = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Owned by the scheduler; nobody else writes to it but the prefix cache, which fills blocks.

    `tokens` are prompt and output; the first `computed` of them have their keys and values in
    the blocks of `block_table`, whose first `cached_blocks` others may hold too.
    """

    request_id: str
    index: int  # which of the request's n
    prompt_length: int
    tokens: list[int]
    sampling: SamplingParams
    adapter: str | None  # version digest
    seed: int
    arrived_s: float  # time.perf_counter
    cache_salt: str = ""  # only sequences of the same salt share blocks
    phase: Phase = Phase.WAITING
    computed: int = 0
    block_table: list[int] = field(default_factory=list)
    cached_blocks: int = 0
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, as far as asked for
    cached_tokens: int | None = None  # found in the prefix cache when it first ran
    lease: SlotLease | None = None
    overtaken: int = 0  # by later sequences that needed a slot, while this one waited for one
    adapter_ready_s: float | None = None  # perf_counter when nothing but a slot was missing
    scheduled_s: float | None = None  # perf_counter of the first step it was in
    stop_ids: frozenset[int] = frozenset()  # that end it, once min_tokens are out
    lookup: PromptLookup | None = None  # where its drafts come from; None: it has none

    @property
    def key(self) -> tuple[str, int]:
        return self.request_id, self.index

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def uncomputed(self) -> int:
        """Tokens whose keys and values are still to be made; 1 for a plain decode."""
        return len(self.tokens) - self.computed

    def blocks_for(self, tokens: int, block_size: int) -> int:
        """Blocks still missing to hold the first `tokens` tokens."""
        return max(0, -(-tokens // block_size) - len(self.block_table))
