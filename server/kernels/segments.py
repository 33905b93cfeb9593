"""Which rows of a step belong to which slot. Pure facts, built once per step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

NO_ADAPTER = -1
"""The slot of rows that only the base serves."""

LEAST_RANK_ROOM = 16  # the next are 4, 16, 64 … times as much


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start` up to `end` of a step use `slot`, whose adapter has `rank`."""

    start: int
    end: int
    slot: int
    rank: int


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The segments of one step. `items` are the host's copy of `starts` and `slots`.

    Both are kept because a CPU form loops over segments and a GPU form must not wait for
    a copy from the device to do so.
    """

    starts: Tensor  # [segments + 1] int32; starts[0] == 0, starts[-1] == tokens
    slots: Tensor  # [segments] int32; NO_ADAPTER means base only
    items: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        """Rows in the step."""
        return self.items[-1].end if self.items else 0

    @property
    def live_slots(self) -> frozenset[int]:
        """Slots that at least one row uses."""
        return frozenset(item.slot for item in self.items if item.slot != NO_ADAPTER)

    @property
    def rank_room(self) -> int:
        """The highest rank of any segment, rounded up to one of few numbers; 0 if none has one.

        For what is launched by shapes alone: it may hold for later steps too.
        """
        highest = max((item.rank for item in self.items), default=0)
        if highest == 0:
            return 0
        room = LEAST_RANK_ROOM
        while room < highest:
            room *= 4
        return room


def plan_segments(
    row_slots: Sequence[tuple[int, int]],
    ranks: Sequence[int],
    device: torch.device | None = None,
    previous: SegmentPlan | None = None,
) -> SegmentPlan:
    """Segments of a step whose rows come as `(count, slot)` runs, in row order.

    Neighbouring runs of one slot become one segment. `ranks[slot]` is the rank of the adapter
    in that slot. `previous`, another step's, is handed on if it is the same: while the same
    sequences decode, it is. Raises ValueError on an empty run.
    """
    items: list[Segment] = []
    row = 0
    for slot, runs in groupby(row_slots, key=itemgetter(1)):
        counts = [count for count, _ in runs]
        if min(counts) < 1:
            raise ValueError(f"a run of {min(counts)} rows for slot {slot}")
        end = row + sum(counts)
        items.append(Segment(row, end, slot, 0 if slot == NO_ADAPTER else ranks[slot]))
        row = end
    if previous is not None and previous.items == tuple(items):
        return previous
    starts = torch.tensor([0, *(item.end for item in items)], dtype=torch.int32, device=device)
    slots = torch.tensor([item.slot for item in items], dtype=torch.int32, device=device)
    return SegmentPlan(starts, slots, tuple(items))
