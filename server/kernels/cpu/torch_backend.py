"""Shrink and expand of torch's own batched matmuls: for machines without the native library.

Two regimes, told apart once per step. Long segments (prefill) are one matmul each: their weights
are read once for many rows. Short segments (decodes, a few rows each) share batched matmuls over
a window of slots: reading the weights is nearly all of their cost, so the stacked tensors are
used in place, as a view, whenever the live slots lie close together, and gathered when not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.kernels.backend import Stack, check_cover
from server.kernels.segments import NO_ADAPTER, Segment, SegmentPlan

SHORT_SEGMENT_ROWS = 8
"""Segments of at most so many rows go to the batched matmul; above it one matmul each wins."""

MAX_WINDOW_WASTE = 2
"""A view over neighbouring slots may hold so many times the live ones before gathering wins."""


@dataclass(frozen=True, slots=True)
class ShortGroup:
    """Short segments as one batch: `cells` says where each row lies in [batch, depth]."""

    rows: Tensor  # [rows] int64, rows of the step
    cells: Tensor | None  # [rows] int64, into batch × depth flattened; None: row i is cell i
    batch: int
    depth: int  # rows of the fullest slot
    rank: int  # the highest live rank
    window: slice | Tensor  # of slots: a slice to view, or [batch] int64 to gather
    span: slice | None  # the rows, where they are one run without a gap


@dataclass(frozen=True, slots=True)
class PreparedSegments:
    """A step's segments, split into the two regimes."""

    plan: SegmentPlan
    live: Tensor  # [slots in use] int64
    long: tuple[Segment, ...]
    short: ShortGroup | None


class TorchCpuBackend:
    """Batched matmuls over slots for short segments, one matmul for each long one."""

    name = "torch"

    def prepare(self, segments: SegmentPlan) -> PreparedSegments:
        live = [item for item in segments.items if item.slot != NO_ADAPTER]
        short = [item for item in live if item.end - item.start <= SHORT_SEGMENT_ROWS]
        long = tuple(item for item in live if item.end - item.start > SHORT_SEGMENT_ROWS)
        slots = torch.tensor(sorted(segments.live_slots), dtype=torch.int64)
        return PreparedSegments(segments, slots, long, _group(short) if short else None)

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
        group = prepared.short
        batched = None if group is None else _batched(x, group)
        for stack, out in zip(stacks, outs, strict=True):
            if not stack.ranks[prepared.live].any():
                continue
            for item in prepared.long:
                y = x[item.start : item.end] @ stack.a[item.slot, : item.rank].T
                out[item.start : item.end].addmm_(y, stack.b[item.slot, : item.rank])
            if group is not None and batched is not None:
                _add_short(batched, stack, group, out)


def _add_short(batched: Tensor, stack: Stack, group: ShortGroup, out: Tensor) -> None:
    """The update of the group's rows, `batched` [batch, depth, in], into out [tokens, out]."""
    a = stack.a[group.window, : group.rank]
    b = stack.b[group.window, : group.rank]
    delta = torch.bmm(torch.bmm(batched, a.transpose(1, 2)), b).flatten(0, 1)
    if group.cells is not None:
        delta = delta[group.cells]
    if group.span is not None:
        out[group.span] += delta
    else:
        out.index_add_(0, group.rows, delta)


def _group(short: list[Segment]) -> ShortGroup:
    """Lays short segments out as one batch with a line of cells per slot."""
    rows_of: dict[int, list[int]] = {}
    for item in short:
        rows_of.setdefault(item.slot, []).extend(range(item.start, item.end))
    slots = sorted(rows_of)
    low, width = slots[0], slots[-1] - slots[0] + 1
    depth = max(len(rows) for rows in rows_of.values())
    if width <= MAX_WINDOW_WASTE * len(slots):
        line_of = {slot: slot - low for slot in slots}
        window: slice | Tensor = slice(low, low + width)
        batch = width
    else:
        line_of = {slot: line for line, slot in enumerate(slots)}
        window = torch.tensor(slots)
        batch = len(slots)
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
        rank=max(item.rank for item in short),
        window=window,
        span=slice(rows[0], rows[-1] + 1) if gapless else None,
    )


def _batched(x: Tensor, group: ShortGroup) -> Tensor:
    """The group's rows of x [tokens, in] as [batch, depth, in]; cells without a row are zero."""
    taken = x[group.span] if group.span is not None else x[group.rows]
    if group.cells is None:
        return taken.view(group.batch, group.depth, -1)
    padded = x.new_zeros(group.batch * group.depth, x.shape[1])
    padded[group.cells] = taken
    return padded.view(group.batch, group.depth, -1)
