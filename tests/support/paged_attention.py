"""Paged attention's cases for kernels: chunks of sequences in a shuffled cache, softmax by hand.

Blocks that no chunk may read are NaN, and so is what lies past a sequence's end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.kernels.triton.attention import AttentionStep

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(frozen=True, slots=True)
class Case:
    """Chunks `(tokens before it, its own tokens)`, one of each sequence; and heads."""

    chunks: Sequence[tuple[int, int]]
    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    block_size: int = 16


DECODES = [(0, 1), (15, 1), (16, 1), (90, 1)]
MIXED = [(40, 1), (20, 3), (0, 19)]
CASES = {
    "decodes": Case(DECODES),
    "chunks of prompts": Case(MIXED),
    "one long chunk": Case([(7, 70)]),
    "as many keys as heads": Case(MIXED, heads=2, kv_heads=2),
    "one head of keys, three of queries": Case(DECODES, heads=3, kv_heads=1),
    "more heads than a small tile has lines": Case([(20, 1), (3, 2)], heads=20, kv_heads=1),
    "dims that are no power of two": Case(MIXED, key_dim=24, value_dim=40),
    "tiny dims": Case(DECODES, key_dim=7, value_dim=3),
    "window": Case(MIXED, window=9),
    "window of one": Case([(12, 3)], window=1),
    "soft-cap": Case(DECODES, softcap=2.0),
    "sinks": Case(MIXED, sinks=True),
    "all at once": Case(MIXED, heads=6, window=30, softcap=5.0, sinks=True, key_dim=20),
    "odd blocks": Case(DECODES, block_size=5),
}


def assert_equals_a_softmax_by_hand(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Writes every sequence's keys, attends from its last chunk, compares row by row."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    lengths = [before + own for before, own in case.chunks]
    rows = sum(own for _, own in case.chunks)
    tables, blocks = _tables(lengths, case.block_size, generator)
    shape = (blocks, case.block_size, case.kv_heads)
    keys = torch.full((*shape, case.key_dim), float("nan"), dtype=dtype, device=device)
    values = torch.full((*shape, case.value_dim), float("nan"), dtype=dtype, device=device)
    query = random(case.heads, rows, case.key_dim).transpose(0, 1)
    sinks = torch.randn(case.heads, generator=generator) if case.sinks else None
    scale, expected, row = case.key_dim**-0.5, [], 0
    nothing = torch.zeros(0, dtype=torch.int64)
    for table, length, (before, _) in zip(tables, lengths, case.chunks, strict=True):
        key, value = (random(length, case.kv_heads, d) for d in (case.key_dim, case.value_dim))
        at = torch.arange(length)
        places = table[at // case.block_size] * case.block_size + at % case.block_size
        cached = AttentionStep(nothing, nothing, nothing, places.to(device))
        cached.write(key.to(device), value.to(device), keys, values)
        for position in range(before, length):
            seen = slice(max(0, position + 1 - (case.window or length)), position + 1)
            expected.append(by_hand(query[row], key[seen], value[seen], scale, case, sinks))
            row += 1
    own = [own for _, own in case.chunks]
    step = AttentionStep(
        torch.tensor([0, *own]).cumsum(0).to(torch.int32).to(device),
        torch.cat([torch.arange(before, before + own) for before, own in case.chunks]).to(device),
        tables.to(device),
        nothing,
    )
    out = torch.full((rows, case.heads, case.value_dim), float("nan"), dtype=dtype, device=device)

    step.attend(
        query.to(device), keys, values, out, scale=scale, window=case.window,
        softcap=case.softcap, sinks=None if sinks is None else sinks.to(device),
    )  # fmt: skip

    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        out.cpu().double(), torch.stack(expected), atol=tolerance, rtol=tolerance
    )


def by_hand(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, case: Case, sinks: Tensor | None
) -> Tensor:
    """query [heads, dim]; keys, values [seen, kv_heads, dim] → [heads, value_dim], float64."""
    query, keys, values = query.double(), keys.double(), values.double()
    share = case.heads // case.kv_heads
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    scores = torch.einsum("hd,thd->ht", query, keys) * scale
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
    weights = scores.softmax(-1)[:, : keys.shape[0]]
    return torch.einsum("ht,thd->hd", weights, values)


def _tables(
    lengths: Sequence[int], block_size: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Block tables [sequences, blocks] int64 into a shuffled cache, and how many blocks it has."""
    width = max(-(-length // block_size) for length in lengths)
    order = torch.randperm(len(lengths) * width, generator=generator) + 1
    tables = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        used = -(-length // block_size)
        tables[row, :used] = order[row * width : row * width + used]
    return tables, len(order) + 1
