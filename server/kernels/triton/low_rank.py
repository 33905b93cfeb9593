"""Shrink and expand over tiles of segments, for up to three modules that read one input.

Source of the terms: SGMV and BGMV, Punica, arXiv:2310.18547. Work and memory reads end at the rank
of each slot in each module, which is read on the device, as is where the slot's rows begin; rows
without an adapter are not touched.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.kernels.backend import Stack
from server.kernels.triton.dots import block_for, dot_form

MAX_MEMBERS = 3  # q, k and v
MAX_RANK_BLOCK = 32  # ranks that one program of shrink computes
SHRINK_WIDTH = 128  # inputs multiplied at once
EXPAND_COLUMNS = 128  # outputs of one program of expand
WANTED_PROGRAMS = 512  # of shrink, to keep a large GPU busy
LEAST_SPLIT_WIDTH = 512  # inputs; below it a split costs more than it gives


def add(
    x: Tensor,
    stacks: tuple[Stack, ...],
    outs: tuple[Tensor, ...],
    slots: Tensor,
    starts: Tensor,
    tiles: Tensor,
    tile_rows: int,
    rank_room: int,
) -> None:
    """outs[i][t] += x[t] @ a_i[s].T @ b_i[s] for each row t of a tile with slot s; sums in float32.

    x [tokens, in] and outs[i] [tokens, out_i], rows any distance apart; slots [segments] int32;
    starts [slots] int32, where a slot's rows begin; tiles as `tiles.cut` gives them for the
    segments, of which none has a rank over `rank_room`. 1 to MAX_MEMBERS stacks.
    """
    rows, width = x.shape
    members = len(stacks)
    form, rank_block = dot_form(x.dtype), min(MAX_RANK_BLOCK, block_for(rank_room))
    a, b = _padded([s.a for s in stacks]), _padded([s.b for s in stacks])
    ranks = _padded([s.ranks if s.device_ranks is None else s.device_ranks for s in stacks])
    targets, widths = _padded(outs), [out.shape[1] for out in outs]
    widths += [0] * (MAX_MEMBERS - members)
    rank_blocks = -(-rank_room // rank_block)
    splits, split_width = _splits(width, tiles.shape[0] * members * rank_blocks)
    y = torch.empty(splits, members, rows, rank_room, dtype=torch.float32, device=x.device)
    _shrink[(tiles.shape[0], members * rank_blocks, splits)](
        x, x.stride(0), tiles, slots, starts, *a, *ranks, y,
        rows, width, rank_room, members, split_width,
        ROWS=tile_rows, RANKS=rank_block, WIDTH=SHRINK_WIDTH,
        DOT=form.dtype, PRECISION=form.precision,
    )  # fmt: skip
    column_blocks = sum(-(-size // EXPAND_COLUMNS) for size in widths)
    _expand[(tiles.shape[0], column_blocks)](
        y, tiles, slots, starts, *b, *ranks, *targets, *(out.stride(0) for out in targets), *widths,
        rows, rank_room, members, splits,
        ROWS=tile_rows, RANKS=rank_block, COLUMNS=EXPAND_COLUMNS,
        DOT=form.dtype, PRECISION=form.precision,
    )  # fmt: skip


def _padded(tensors: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
    """MAX_MEMBERS of them; the first stands in for the missing, which no program reaches."""
    return [*tensors, *[tensors[0]] * (MAX_MEMBERS - len(tensors))]


def _splits(width: int, programs: int) -> tuple[int, int]:
    """Parts that shrink's inputs are cut into, and inputs per part."""
    most = -(-width // LEAST_SPLIT_WIDTH)
    wanted = max(1, min(most, -(-WANTED_PROGRAMS // programs)))
    split_width = -(-width // (wanted * SHRINK_WIDTH)) * SHRINK_WIDTH
    return -(-width // split_width), split_width


@triton.jit
def _of(member, first, second, third):
    """What belongs to this member."""
    return tl.where(member == 0, first, tl.where(member == 1, second, third))


@triton.jit
def _shrink(
    x_ptr, x_stride, tiles_ptr, slots_ptr, starts_ptr,
    a0_ptr, a1_ptr, a2_ptr, ranks0_ptr, ranks1_ptr, ranks2_ptr,
    y_ptr, rows, width, rank_room, members, split_width,
    ROWS: tl.constexpr, RANKS: tl.constexpr, WIDTH: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y [splits, members, rows, rank_room]: a tile's products with RANKS rows of one module's a.

    Each split stores its own sums, which expand adds up in order: the same step always gives the
    same bits. What lies above a slot's rank is left unwritten.
    """
    tile = tl.program_id(0)
    rank_blocks = tl.cdiv(rank_room, RANKS)
    member = tl.program_id(1) // rank_blocks
    first_rank = tl.program_id(1) % rank_blocks * RANKS
    split = tl.program_id(2)
    count = tl.load(tiles_ptr + 3 * tile + 2)
    if count == 0:
        return
    slot = tl.load(slots_ptr + tl.load(tiles_ptr + 3 * tile)).to(tl.int64)
    if slot < 0:
        return
    a_ptr = _of(member, a0_ptr, a1_ptr, a2_ptr)
    rank = tl.load(_of(member, ranks0_ptr, ranks1_ptr, ranks2_ptr) + slot)
    if first_rank >= rank:
        return

    row = tl.arange(0, ROWS)
    r = first_rank + tl.arange(0, RANKS)
    rows_in = (row < count)[:, None]
    ranks_in = (r < rank)[:, None]
    line = (tl.load(tiles_ptr + 3 * tile + 1) + row).to(tl.int64)
    x_rows = x_ptr + line[:, None] * x_stride
    a_rows = a_ptr + (tl.load(starts_ptr + slot).to(tl.int64) + r)[:, None] * width
    sums = tl.zeros([ROWS, RANKS], dtype=tl.float32)
    begin = split * split_width
    end = tl.minimum(begin + split_width, width)
    for at in range(begin, end, WIDTH):
        k = (at + tl.arange(0, WIDTH))[None, :]
        x = tl.load(x_rows + k, mask=rows_in & (k < end), other=0.0)
        a = tl.load(a_rows + k, mask=ranks_in & (k < end), other=0.0)
        sums = tl.dot(x.to(DOT), tl.trans(a.to(DOT)), sums, input_precision=PRECISION)
    y_rows = y_ptr + (((split * members + member) * rows + line) * rank_room)[:, None]
    tl.store(y_rows + r[None, :], sums, mask=rows_in & (r < rank)[None, :])


@triton.jit
def _expand(
    y_ptr, tiles_ptr, slots_ptr, starts_ptr,
    b0_ptr, b1_ptr, b2_ptr, ranks0_ptr, ranks1_ptr, ranks2_ptr,
    out0_ptr, out1_ptr, out2_ptr, stride0, stride1, stride2, width0, width1, width2,
    rows, rank_room, members, splits,
    ROWS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds COLUMNS of one module's update to a tile's rows of its output."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    count = tl.load(tiles_ptr + 3 * tile + 2)
    if count == 0:
        return
    slot = tl.load(slots_ptr + tl.load(tiles_ptr + 3 * tile)).to(tl.int64)
    if slot < 0:
        return
    blocks0 = tl.cdiv(width0, COLUMNS)
    blocks1 = tl.cdiv(width1, COLUMNS)
    member = (block >= blocks0).to(tl.int32) + (block >= blocks0 + blocks1).to(tl.int32)
    block -= _of(member, 0, blocks0, blocks0 + blocks1)
    b_ptr = _of(member, b0_ptr, b1_ptr, b2_ptr)
    out_ptr = _of(member, out0_ptr, out1_ptr, out2_ptr)
    stride = _of(member, stride0, stride1, stride2)
    width = _of(member, width0, width1, width2)
    rank = tl.load(_of(member, ranks0_ptr, ranks1_ptr, ranks2_ptr) + slot)
    if rank == 0:
        return

    row = tl.arange(0, ROWS)
    column = (block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    rows_in = (row < count)[:, None]
    line = (tl.load(tiles_ptr + 3 * tile + 1) + row).to(tl.int64)
    start = tl.load(starts_ptr + slot).to(tl.int64)
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first_rank in range(0, rank, RANKS):
        r = first_rank + tl.arange(0, RANKS)
        y = tl.zeros([ROWS, RANKS], dtype=tl.float32)
        for split in range(0, splits):
            y_rows = y_ptr + (((split * members + member) * rows + line) * rank_room)[:, None]
            y += tl.load(y_rows + r[None, :], mask=rows_in & (r < rank)[None, :], other=0.0)
        b_rows = b_ptr + (start + r)[:, None] * width
        b = tl.load(b_rows + column, mask=(r < rank)[:, None] & (column < width), other=0.0)
        sums = tl.dot(y.to(b.dtype).to(DOT), b.to(DOT), sums, input_precision=PRECISION)
    out_at = out_ptr + line[:, None] * stride + column
    inside = rows_in & (column < width)
    out = tl.load(out_at, mask=inside, other=0.0)
    tl.store(out_at, (out.to(tl.float32) + sums).to(out.dtype), mask=inside)
