"""The low-rank path's cases for kernels: random adapters, and the update of each row by itself.

What lies above a slot's rank is NaN here, so that whoever reads it is found out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.kernels.backend import LowRankBackend, Stack
from server.kernels.segments import NO_ADAPTER, plan_segments

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, slots=True)
class Mix:
    """Who runs what: `(rows, slot)` runs in row order, and of each member its rank per slot."""

    runs: Sequence[tuple[int, int]]
    ranks: Sequence[Sequence[int]]  # [members][slots]
    max_rank: int
    width: int  # of the input
    outs: Sequence[int]  # widths of the members' outputs, columns of one tensor


def assert_equals_a_loop(
    backend: LowRankBackend, mix: Mix, dtype: torch.dtype, device: torch.device
) -> None:
    """Adds a mix's update and compares each row with one worked out alone, in float64."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(count for count, _ in mix.runs)
    x = torch.randn(rows, 2 * mix.width, generator=generator).to(dtype)[:, 3 : 3 + mix.width]
    base = torch.randn(rows, sum(mix.outs) + 5, generator=generator).to(dtype)
    fused, expected, start = base.to(device), base.double(), 2
    stacks, outs = [], []
    for ranks, size in zip(mix.ranks, mix.outs, strict=True):
        stack = _stack(ranks, mix, size, dtype, generator)
        columns = slice(start, start + size)
        expected[:, columns] += _loop(x, stack, mix)
        outs.append(fused[:, columns])
        host = stack.ranks
        stacks.append(Stack(stack.a.to(device), stack.b.to(device), host, host.to(device)))
        start += size
    highest = [max(of_slot) for of_slot in zip(*mix.ranks, strict=True)]

    prepared = backend.prepare(plan_segments(mix.runs, highest, device))
    backend.add(x.to(device), stacks, outs, prepared)

    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(fused.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    bare = torch.tensor([slot == NO_ADAPTER for count, slot in mix.runs for _ in range(count)])
    assert torch.equal(fused.cpu()[bare], base[bare]), "base rows changed"


def _stack(
    ranks: Sequence[int], mix: Mix, size: int, dtype: torch.dtype, generator: torch.Generator
) -> Stack:
    a = torch.full((len(ranks), mix.max_rank, mix.width), float("nan"))
    b = torch.full((len(ranks), mix.max_rank, size), float("nan"))
    for slot, rank in enumerate(ranks):
        a[slot, :rank] = torch.randn(rank, mix.width, generator=generator) / mix.width**0.5
        b[slot, :rank] = torch.randn(rank, size, generator=generator) / max(1, rank) ** 0.5
    return Stack(a.to(dtype), b.to(dtype), torch.tensor(ranks, dtype=torch.int32))


def _loop(x: Tensor, stack: Stack, mix: Mix) -> Tensor:
    """The update [rows, out], float64."""
    updates = torch.zeros(x.shape[0], stack.b.shape[2], dtype=torch.float64)
    row = 0
    for count, slot in mix.runs:
        if slot != NO_ADAPTER:
            rank = int(stack.ranks[slot])
            a, b = stack.a[slot, :rank].double(), stack.b[slot, :rank].double()
            updates[row : row + count] = x[row : row + count].double() @ a.T @ b
        row += count
    return updates
