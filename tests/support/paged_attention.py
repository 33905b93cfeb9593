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
