"""A scripted engine behind the API's Engine protocol, and a tokenizer small enough to read."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapters_store.content import LinearShape
from adapters_store.errors import AdapterdError
from server.api.services import EngineState
from server.engine.messages import (
    EngineInfo,
    GenerationRequest,
    SlotLevel,
    Stats,
    Timing,
    TokenEvent,
)

EOS, USER, ASSISTANT, END = "<eos>", "<user>", "<assistant>", "<end>"
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCABULARY = 300
CONTEXT = 128

Script = Callable[[GenerationRequest, int], Sequence[int]]  # (request, choice) → token ids


def make_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE: ids 0 to 255 are bytes (in the alphabet's order), then a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("o", "r")]
    words = alphabet + ["".join(pair) for pair in merges]
    bpe = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = [EOS, "<system>", USER, ASSISTANT, END]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, chat_template=chat_template
    )


class ScriptedEngine:
    """Says `script(request, choice)` token by token, then its end, as a real engine would.

    Ends by "length" at max_tokens, by "stop" after the script's last token or an EOS.
    """

    def __init__(self, script: Script, *, eos: int) -> None:
        self.script = script
        self.state: EngineState = "ready"
        self.stats = Stats()
        self.restarts = 0
        self.requests: list[GenerationRequest] = []
        self.closed: list[str] = []  # ids whose generator has been closed
        self.dropped: list[tuple[str, int]] = []
        self.wishes: list[tuple[str, str, object]] = []  # prefetches, pins and unpins
        self.fail_before: AdapterdError | None = None
        self.fail_after: tuple[int, Exception] | None = None  # (steps, error)
        self.cached: dict[int, int] = {}  # choice → tokens of its prompt that were cached
        self.per_step = 1  # tokens that a choice says in one step
        self.logprob = -0.5  # of each token; the alternatives' are lower
        self.hold = asyncio.Event()  # cleared: engine waits after its first step
        self.hold.set()
        self.eos = eos
        self.info = EngineInfo(
            architecture="LlamaForCausalLM",
            digest="b" * 64,
            dtype="float32",
            device="cpu",
            vocab_size=VOCABULARY,
            max_model_len=CONTEXT,
            eos_token_ids=(eos,),
            kv_blocks=8,
            block_size=16,
            parameters=1000,
            kernels="torch",
            quantization="none",
            modules={"model.layers.0.self_attn.q_proj": LinearShape(8, 8)},
            norms={"model.layers.0.self_attn.q_proj": 2.0},
            slot_rows=64,
            slot_row_bytes=64,
            load_s=0.1,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[tuple[TokenEvent, ...]]:
        self.requests.append(request)
        try:
            await asyncio.sleep(0)
            if self.fail_before is not None:
                raise self.fail_before
            self._said = said = [list(self.script(request, i)) for i in range(request.n)]
            step = 0
            while any(said):
                if self.fail_after is not None and step == self.fail_after[0]:
                    raise self.fail_after[1]
                yield tuple(
                    self._event(request, index, step * self.per_step + ahead, tokens)
                    for index, tokens in enumerate(said)
                    for ahead in range(self.per_step)
                    if tokens
                )
                step += 1
                await asyncio.sleep(0)
                await self.hold.wait()
        finally:
            self.closed.append(request.id)

    def drop(self, request_id: str, index: int) -> None:
        self.dropped.append((request_id, index))
        self._said[index].clear()

    async def prefetch(self, digest: str, to: SlotLevel = "slot") -> None:
        await self._wish("prefetch", digest, to)
        self.stats = replace(self.stats, residency=self.stats.residency | {digest: to})

    async def pin(self, digest: str, ttl_s: float | None = None) -> None:
        await self._wish("pin", digest, ttl_s)
        levels = self.stats.residency | {digest: "slot"}
        self.stats = replace(self.stats, residency=levels, pinned=(*self.stats.pinned, digest))

    async def unpin(self, digest: str) -> None:
        await self._wish("unpin", digest, None)
        pinned = tuple(one for one in self.stats.pinned if one != digest)
        self.stats = replace(self.stats, pinned=pinned)

    async def _wish(self, kind: str, digest: str, how: object) -> None:
        self.wishes.append((kind, digest, how))
        await asyncio.sleep(0)
        await self.hold.wait()
        if self.fail_before is not None:
            raise self.fail_before

    def _event(
        self, request: GenerationRequest, index: int, position: int, tokens: list[int]
    ) -> TokenEvent:
        token = tokens.pop(0)
        reason = None
        if token == self.eos and not request.sampling.ignore_eos:
            reason = "stop"
        elif position + 1 == request.sampling.max_tokens:
            reason = "length"
        if reason is not None:
            tokens.clear()
        wanted = request.sampling.logprobs
        count = min(wanted or 0, VOCABULARY)
        top = tuple(((token + other) % VOCABULARY, self.logprob - other) for other in range(count))
        return TokenEvent(
            request.id,
            index,
            token,
            finish_reason=reason,
            logprob=None if wanted is None else self.logprob,
            top_logprobs=top,
            timing=Timing(queue_s=0.004, load_s=0.003, prefill_s=0.002) if position == 0 else None,
            cached_tokens=self.cached.get(index, 0) if position == 0 else None,
        )
