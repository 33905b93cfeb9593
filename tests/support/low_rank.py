"""The low-rank path's cases for kernels: random adapters, and the update of each row by itself.

Rows that are no slot's are NaN here, so that whoever uses them is found out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from server.kernels.backend import GRANULE, LowRankBackend, SlotStarts, Stack, rows_for_rank
from server.kernels.segments import NO_ADAPTER, plan_segments

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, slots=True)
class Mix:
    """Who runs what: `(rows, slot)` runs in row order, and of each member its rank per slot."""

    runs: Sequence[tuple[int, int]]
    ranks: Sequence[Sequence[int]]  # [members][slots]
    width: int  # of the input
    outs: Sequence[int]  # widths of the members' outputs, columns of one tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Where slots lie in the stacks."""

    starts: SlotStarts
    sizes: Sequence[int]  # rows of each slot
    rows: int

    @classmethod
    def of(cls, ranks: Sequence[int], device: torch.device, *, shuffled: bool = True) -> "Layout":
        """`ranks[slot]` is the highest of the slot's. Shuffled: in random order, with gaps."""
        draw, order, at = random.Random(7), list(range(len(ranks))), 0
        if shuffled:
            draw.shuffle(order)
        starts, sizes = SlotStarts(len(ranks), device), [rows_for_rank(rank) for rank in ranks]
        for slot in order:
            at += GRANULE * draw.randrange(3) if shuffled else 0
            starts.put(slot, at)
            at += sizes[slot]
        return cls(starts, sizes, at)

    def stack(
        self, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device, *, above: float = 0.0
    ) -> Stack:
        """Of each slot's a [rank, in] and b [rank, out]. `above`: in its rows at or above rank."""
        ranks = [len(a) for a, _ in pairs]
        stacked = [each.new_full((self.rows, each.shape[1]), nan) for each in pairs[0]]
        for start, size, pair in zip(self.starts.host, self.sizes, pairs, strict=True):
            for rows, own in zip(stacked, pair, strict=True):
                rows[start : start + size] = above
                rows[start : start + len(own)] = own
        host = torch.tensor(ranks, dtype=torch.int32)
        return Stack(stacked[0].to(device), stacked[1].to(device), host, host.to(device))


def random_pairs(
    ranks: Sequence[int], width: int, out: int, dtype: torch.dtype, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """a [rank, width] and b [rank, out] of each slot; an update is about as large as its row."""
    return [
        (
            (torch.randn(rank, width, generator=generator) / width**0.5).to(dtype),
            (torch.randn(rank, out, generator=generator) / max(1, rank) ** 0.5).to(dtype),
        )
        for rank in ranks
    ]


def loop(
    x: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], runs: Sequence[tuple[int, int]]
) -> Tensor:
    """The update [rows, out] of each row by itself, float64."""
    rows, none = [], torch.zeros(pairs[0][1].shape[1], dtype=torch.float64)
    for count, slot in runs:
        for _ in range(count):
            a, b = pairs[slot]
            row = x[len(rows)].double()
            rows.append(none if slot == NO_ADAPTER else row @ a.double().T @ b.double())
    return torch.stack(rows)


def assert_equals_a_loop(
    backend: LowRankBackend, mix: Mix, dtype: torch.dtype, device: torch.device
) -> None:
    """Adds a mix's update and compares each row with one worked out alone, in float64.

    Nothing at or above a slot's rank in a module may be read: it is NaN too.
    """
    generator = torch.Generator().manual_seed(0)
    rows = sum(count for count, _ in mix.runs)
    x = torch.randn(rows, 2 * mix.width, generator=generator).to(dtype)[:, 3 : 3 + mix.width]
    base = torch.randn(rows, sum(mix.outs) + 5, generator=generator).to(dtype)
    fused, expected, start = base.to(device), base.double(), 2
    highest = [max(of_slot) for of_slot in zip(*mix.ranks, strict=True)]
    layout = Layout.of(highest, device)
    stacks, outs = [], []
    for ranks, size in zip(mix.ranks, mix.outs, strict=True):
        pairs = random_pairs(ranks, mix.width, size, dtype, generator)
        columns = slice(start, start + size)
        expected[:, columns] += loop(x, pairs, mix.runs)
        outs.append(fused[:, columns])
        stacks.append(layout.stack(pairs, device, above=nan))
        start += size

    prepared = backend.prepare(plan_segments(mix.runs, highest, device), layout.starts)
    backend.add(x.to(device), stacks, outs, prepared)

    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(fused.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    bare = torch.tensor([slot == NO_ADAPTER for count, slot in mix.runs for _ in range(count)])
    assert torch.equal(fused.cpu()[bare], base[bare]), "base rows changed"
