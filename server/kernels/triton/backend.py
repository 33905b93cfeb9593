"""The low-rank path by Triton kernels: two launches for all modules that read one input."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from server.kernels.backend import SlotStarts, Stack, check_cover
from server.kernels.segments import SegmentPlan
from server.kernels.triton import low_rank
from server.kernels.triton.tiles import cut, tile_rows_for


@dataclass(frozen=True, slots=True)
class PreparedSegments:
    """A step's segments, where slots lie, and the tiles that programs work on."""

    plan: SegmentPlan
    starts: Tensor  # [slots] int32, on the device
    tiles: Tensor  # [tiles, 3] int32, on the device
    tile_rows: int
    rank_room: int  # that no segment's rank is over


class TritonBackend:
    """float32, bfloat16 and float16 on CUDA; sums in float32.

    Neither method waits for the device, and what they launch depends on shapes and the segments'
    `rank_room` alone.
    """

    name = "triton"

    def prepare(self, segments: SegmentPlan, starts: SlotStarts) -> PreparedSegments:
        tile_rows = tile_rows_for(segments.tokens, segments.slots.shape[0])
        tiles = cut(segments.starts, segments.tokens, tile_rows)
        return PreparedSegments(segments, starts.device, tiles, tile_rows, segments.rank_room)

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
        assert x.stride(1) == 1 and all(out.stride(1) == 1 for out in outs)
        if not prepared.rank_room:
            return
        for first in range(0, len(stacks), low_rank.MAX_MEMBERS):
            some = slice(first, first + low_rank.MAX_MEMBERS)
            low_rank.add(
                x,
                tuple(stacks[some]),
                tuple(outs[some]),
                prepared.plan.slots,
                prepared.starts,
                prepared.tiles,
                prepared.tile_rows,
                prepared.rank_room,
            )
