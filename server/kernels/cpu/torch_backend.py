"""Shrink and expand of torch's own batched matmuls: for machines without the native library.

Two regimes, told apart once per step. Long segments (prefill) are one matmul each: their weights
are read once for many rows. Short segments (decodes, a few rows each) share batched matmuls, one
for the slots of each size, so that none pays for a higher rank. Reading the weights is nearly all
of their cost, so the stacked tensors are used in place, as a view, whenever these slots lie at even
distances and close together, and gathered when not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor

from server.kernels.backend import SlotStarts, Stack, check_cover, rows_for_rank
from server.kernels.segments import Segment, SegmentPlan

SHORT_SEGMENT_ROWS = 8
"""Segments of at most so many rows go to the batched matmul; above it one matmul each wins."""

MAX_WINDOW_WASTE = 2
"""A view over neighbouring slots may hold so many times the live ones before gathering wins."""


@dataclass(frozen=True, slots=True)
class Window:
    """Places in a stack's rows at even distances: `count` of them, `step` apart from `first` on."""

    first: int
    step: int
    count: int

    def of(self, rows: Tensor, rank: int) -> Tensor:
        """`rank` rows from each place on, of rows [rows, width], as a view [count, width, rank]."""
        end = self.first + (self.count - 1) * self.step + rank
        return rows[self.first : end].unfold(0, rank, self.step)


@dataclass(frozen=True, slots=True)
class ShortGroup:
    """Short segments of slots of one size as one batch: `cells` says where each row lies in
    [batch, depth]."""

    rows: Tensor  # [rows] int64, rows of the step
    cells: Tensor | None  # [rows] int64, into batch × depth flattened; None: row i is cell i
    batch: int
    depth: int  # rows of the fullest slot
    rank: int  # the highest live rank
    places: Window | Tensor  # of slots in a stack: a view, or [batch, rank] int64 to gather
    span: slice | None  # the rows, where they are one run without a gap


@dataclass(frozen=True, slots=True)
class LongSegment:
    """Rows `start` up to `end` of a step, and their slot's rows in a stack."""

    start: int
    end: int
    rows: slice


@dataclass(frozen=True, slots=True)
class PreparedSegments:
    """A step's segments, split into the two regimes."""

    plan: SegmentPlan
    live: Tensor  # [slots in use] int64
    long: tuple[LongSegment, ...]
    short: tuple[ShortGroup, ...]


class TorchCpuBackend:
    """Batched matmuls over slots for short segments, one matmul for each long one."""

    name = "torch"

    def prepare(self, segments: SegmentPlan, starts: SlotStarts) -> PreparedSegments:
        long: list[LongSegment] = []
        short: dict[int, list[Segment]] = {}  # by the size of their slots
        for item in segments.items:
            if item.rank == 0:  # the base's own
                continue
            if item.end - item.start <= SHORT_SEGMENT_ROWS:
                short.setdefault(rows_for_rank(item.rank), []).append(item)
            else:
                first = starts.host[item.slot]
                long.append(LongSegment(item.start, item.end, slice(first, first + item.rank)))
        return PreparedSegments(
            plan=segments,
            live=torch.tensor(sorted(segments.live_slots), dtype=torch.int64),
            long=tuple(long),
            short=tuple(_group(items, starts.host) for items in short.values()),
        )

    def hook(self, stacks: Sequence[Stack]) -> None:
        return None

    def add(
        self,
        x: Tensor,
        stacks: Sequence[Stack],
        outs: Sequence[Tensor],
        prepared: PreparedSegments,
    ) -> None:
        check_cover(x, prepared.plan)
        batches = [(_batched(x, group), group) for group in prepared.short]
        for stack, out in zip(stacks, outs, strict=True):
            if not stack.ranks[prepared.live].any():
                continue
            for item in prepared.long:
                y = x[item.start : item.end] @ stack.a[item.rows].T
                out[item.start : item.end].addmm_(y, stack.b[item.rows])
            for batched, group in batches:
                _add_short(batched, stack, group, out)


def _add_short(batched: Tensor, stack: Stack, group: ShortGroup, out: Tensor) -> None:
    """The update of the group's rows, `batched` [batch, depth, in], into out [tokens, out].

    The group's rank may be higher than a slot's own in this module: the rows between are zero.
    """
    if isinstance(group.places, Window):
        a = group.places.of(stack.a, group.rank)
        b = group.places.of(stack.b, group.rank).transpose(1, 2)
    else:
        a, b = stack.a[group.places].transpose(1, 2), stack.b[group.places]
    delta = torch.bmm(torch.bmm(batched, a), b).flatten(0, 1)
    if group.cells is not None:
        delta = delta[group.cells]
    if group.span is not None:
        out[group.span] += delta
    else:
        out.index_add_(0, group.rows, delta)


def _group(short: list[Segment], starts: list[int]) -> ShortGroup:
    """Lays short segments, of slots of one size, out as one batch with a line of cells per slot."""
    rows_of: dict[int, list[int]] = {}
    for item in short:
        rows_of.setdefault(item.slot, []).extend(range(item.start, item.end))
    slots = sorted(rows_of, key=lambda slot: starts[slot])
    rank = max(item.rank for item in short)
    depth = max(len(rows) for rows in rows_of.values())
    window = _window([starts[slot] for slot in slots], rank)
    if window is None:
        line_of = {slot: line for line, slot in enumerate(slots)}
        firsts = torch.tensor([starts[slot] for slot in slots])
        places: Window | Tensor = firsts[:, None] + torch.arange(rank)
    else:
        line_of = {slot: (starts[slot] - window.first) // window.step for slot in slots}
        places = window
    batch = len(slots) if window is None else window.count
    rows, cells = [], []
    for slot in slots:
        for place, row in enumerate(rows_of[slot]):
            rows.append(row)
            cells.append(line_of[slot] * depth + place)
    gapless = rows == list(range(rows[0], rows[0] + len(rows)))
    in_order = cells == list(range(batch * depth))
    return ShortGroup(
        rows=torch.tensor(rows),
        cells=None if in_order else torch.tensor(cells),
        batch=batch,
        depth=depth,
        rank=rank,
        places=places,
        span=slice(rows[0], rows[-1] + 1) if gapless else None,
    )


def _window(starts: list[int], rank: int) -> Window | None:
    """The view that holds slots at these places, lowest first; None where gathering wins."""
    step = gcd(*(after - before for before, after in pairwise(starts))) or rank
    count = (starts[-1] - starts[0]) // step + 1
    if step < rank or count > MAX_WINDOW_WASTE * len(starts):
        return None
    return Window(starts[0], step, count)


def _batched(x: Tensor, group: ShortGroup) -> Tensor:
    """The group's rows of x [tokens, in] as [batch, depth, in]; cells without a row are zero."""
    taken = x[group.span] if group.span is not None else x[group.rows]
    if group.cells is None:
        return taken.view(group.batch, group.depth, -1)
    padded = x.new_zeros(group.batch * group.depth, x.shape[1])
    padded[group.cells] = taken
    return padded.view(group.batch, group.depth, -1)
