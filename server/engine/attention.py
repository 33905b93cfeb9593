"""Attention over the paged KV cache, for flat batches, through transformers' AttentionInterface.

Every architecture that transformers routes through the interface is served by this one function:
it is handed queries, keys and values of all rows of a step, after rotary embedding, and the
step's own metadata as the keyword argument `paged`.
"""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from adapters_store.errors import EngineStartFailed
from server.engine.kv_cache import KVCache, LayerShape
from server.engine.plan import StepPlan
from server.kernels.cpu.attention import paged_attention as native_attention
from server.kernels.cpu.attention import write_kv
from server.kernels.cpu.native import NativeKernels, Step

if TYPE_CHECKING:
    from server.kernels.triton.attention import AttentionStep  # triton need not be installed

PAGED_ATTENTION = "adapterd_paged"

IGNORED_ARGUMENTS = frozenset(
    "dropout is_causal position_ids position_embeddings past_key_values use_cache cache_position "
    "output_attentions output_hidden_states output_router_logits return_dict deterministic "
    "head_mask layer_past layer_idx logits_to_keep".split()
)
"""What architectures pass along and this function has no use for. Anything else is refused:
an unknown argument may well be one that changes the result."""


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """What a layer asks of its attention, the same in every step."""

    shape: LayerShape
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # [heads]


@dataclass(slots=True)
class PagedStep:
    """What attention needs of one step, worked out once and shared by all layers.

    `masks` fills as layers ask, keyed by sliding window: layers of one kind share a mask.
    """

    plan: StepPlan
    cache: KVCache
    kernels: NativeKernels | None = None
    triton: "AttentionStep | None" = None  # with it, all rows run on the Triton kernels
    contexts: Tensor = field(init=False)  # [chunks] int64, tokens of the sequence up to its end
    starts: tuple[int, ...] = field(init=False)  # query_starts, without asking the device
    native: Step | None = field(init=False, default=None)  # for native layers
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starts = tuple(accumulate((chunk.count for chunk in self.plan.chunks), initial=0))
        self.contexts = torch.tensor([chunk.start + chunk.count for chunk in self.plan.chunks])
        if self.kernels is not None:
            self.native = native_step(self.plan, self.contexts, self.cache.block_size)


def native_step(plan: StepPlan, contexts: Tensor, block_size: int) -> Step:
    """What native layers need of a step; valid as long as `plan` and `contexts` are."""
    step = Step(rows=plan.tokens, places=plan.write_places.data_ptr())
    step.attention.chunks = len(plan.chunks)
    step.attention.query_starts = plan.query_starts.data_ptr()
    step.attention.block_size = block_size
    step.attention.table_stride = plan.block_tables.stride(0)
    step.attention.tables = plan.block_tables.data_ptr()
    step.attention.contexts = contexts.data_ptr()
    return step


def register() -> None:
    """Makes the attention known to transformers. May be called again."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    paged: PagedStep,
    **others: Any,
) -> tuple[Tensor, None]:
    """Writes the step's keys and values, then attends each row to its own sequence.

    query [1, heads, rows, dim]; key, value [1, kv_heads, rows, dim] →
    [1, rows, heads, value_dim], zero in rows of padding. `softcap` as in Gemma 2,
    `s_aux` [heads] are GPT-OSS's sinks.
    Raises EngineStartFailed on an argument that this function does not know.
    """
    refuse_unknown(others)
    layer: int = module.layer_idx  # type: ignore[assignment]
    plan, cache = paged.plan, paged.cache
    new_keys = key[0, :, : plan.tokens].transpose(0, 1)
    new_values = value[0, :, : plan.tokens].transpose(0, 1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    sinks = None if s_aux is None else s_aux.float()
    options = {"scale": scale, "window": sliding_window, "softcap": softcap, "sinks": sinks}
    rows = query[0].transpose(0, 1)  # [tokens, heads, dim]
    out = rows.new_empty(*rows.shape[:2], value.shape[-1])
    out[plan.tokens :] = 0
    if paged.triton is not None:
        paged.triton.write(new_keys, new_values, *cache.tensors(layer))
        paged.triton.attend(rows, *cache.tensors(layer), out, **options)
        return out.unsqueeze(0), None
    if paged.kernels is None:
        cache.write(layer, plan.write_places, new_keys, new_values)
        _attend_chunks(paged, layer, rows, out, **options)
        return out.unsqueeze(0), None
    write_kv(paged.kernels, new_keys, new_values, *cache.tensors(layer), plan.write_places)
    native_attention(
        paged.kernels,
        rows,
        *cache.tensors(layer),
        plan.block_tables,
        plan.query_starts,
        paged.contexts,
        out,
        **options,
    )
    return out.unsqueeze(0), None


def _attend_chunks(
    paged: PagedStep,
    layer: int,
    rows: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    """Torch's form: decodes together, every other chunk by itself, over gathered keys."""
    plan, cache = paged.plan, paged.cache
    groups = [(0, plan.decodes)] if plan.decodes else []
    groups += [(i, i + 1) for i in range(plan.decodes, len(plan.chunks))]
    for first, last in groups:
        span = slice(paged.starts[first], paged.starts[last])
        width = -(-int(paged.contexts[first:last].max()) // cache.block_size)
        keys, values = cache.read(layer, plan.block_tables[first:last, :width])
        mask = _mask(paged, first, span, last - first, keys.shape[1], window)
        grouped = rows[span].unflatten(0, (last - first, -1))
        out[span] = _attend(grouped, keys, values, mask, scale, softcap, sinks).flatten(0, 1)


def refuse_unknown(others: dict[str, Any]) -> None:
    """Raises EngineStartFailed for an argument that may change the result unseen."""
    for name, given in others.items():
        if given is not None and name not in IGNORED_ARGUMENTS:
            raise EngineStartFailed(
                f"this architecture's attention passes {name!r}, which the paged attention does "
                "not implement; serve a model of another architecture"
            )


def _mask(
    paged: PagedStep, first: int, span: slice, sequences: int, width: int, window: int | None
) -> Tensor:
    """Who sees whom: bool [sequences, 1, rows, width], the same for all heads."""
    if (first, window) not in paged.masks:
        asker = paged.plan.positions[span].view(sequences, 1, -1, 1)
        asked = torch.arange(width, device=asker.device)
        mask = asked <= asker
        if window is not None:
            mask &= asked > asker - window
        paged.masks[first, window] = mask
    return paged.masks[first, window]


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query [n, rows, heads, dim]; keys, values [n, width, kv_heads, dim] → [n, rows, heads, dim].

    Heads that share keys are folded into rows, so that keys are never repeated in memory.
    """
    n, rows, heads, dim = query.shape
    kv_heads = keys.shape[2]
    folded = query.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)  # n, kv, share, rows, dim
    share = folded.shape[2]
    folded = folded.reshape(n, kv_heads, share * rows, dim)
    if share > 1 and rows > 1:
        mask = mask.repeat(1, 1, share, 1)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if softcap is None and sinks is None:
        attended = nn.functional.scaled_dot_product_attention(
            folded, keys, values, attn_mask=mask, scale=scale
        )
    else:
        attended = _attend_by_hand(folded, keys, values, mask, scale, softcap, sinks, share)
    return attended.view(n, kv_heads, share, rows, -1).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _attend_by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    share: int,
) -> Tensor:
    """What SDPA has no argument for. Source: transformers, eager attention of gemma2, gpt_oss."""
    scores = (query @ keys.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    n, kv_heads, folded, _ = scores.shape
    column = sinks.view(1, kv_heads, share, 1).expand(n, -1, -1, folded // share)
    column = column.reshape(n, kv_heads, folded, 1).to(scores.dtype)
    weights = torch.cat([scores, column], dim=-1)
    weights = weights - weights.max(dim=-1, keepdim=True).values
    weights = weights.softmax(-1, dtype=weights.dtype)[..., :-1]
    return weights.to(values.dtype) @ values
