"""Cuts a step's runs of rows into tiles, on the device.

A tile is up to `tile_rows` rows of one run: of a segment for the low-rank path, of a sequence's
chunk for attention. How many there will be is bounded by shapes, so that a captured graph fits
every step of its size; tiles that are not needed have no rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STARTS_AT_ONCE = 256

LONG_RUN_ROWS = 32
SHORT_TILE_ROWS = 16  # the least that a dot product takes
LONG_TILE_ROWS = 64


def tile_rows_for(rows: int, runs: int) -> int:
    """Rows per tile: few where runs are short on average, as in decoding."""
    return LONG_TILE_ROWS if rows >= LONG_RUN_ROWS * runs else SHORT_TILE_ROWS


def cut(starts: Tensor, rows: int, tile_rows: int) -> Tensor:
    """Tiles [tiles, 3] int32: run, first row, rows (0: no tile).

    starts [runs + 1] int32, of which the last is at most `rows`. Runs may be empty.
    """
    runs = starts.shape[0] - 1
    tiles = min(rows, (rows + runs * (tile_rows - 1)) // tile_rows)
    out = torch.empty(tiles, 3, dtype=torch.int32, device=starts.device)
    _cut[(runs + 1,)](starts, out, runs, tiles, TILE_ROWS=tile_rows, AT_ONCE=STARTS_AT_ONCE)
    return out


@triton.jit
def _cut(starts_ptr, tiles_ptr, runs, tiles, TILE_ROWS: tl.constexpr, AT_ONCE: tl.constexpr):
    """One program per run, and a last one that empties the tiles that are left."""
    run = tl.program_id(0)
    before = tl.zeros([AT_ONCE], dtype=tl.int32)
    for begin in range(0, run, AT_ONCE):
        index = begin + tl.arange(0, AT_ONCE)
        earlier = index < run
        left = tl.load(starts_ptr + index, mask=earlier, other=0)
        right = tl.load(starts_ptr + index + 1, mask=earlier, other=0)
        before += (right - left + TILE_ROWS - 1) // TILE_ROWS
    first = tl.sum(before)
    if run < runs:
        start = tl.load(starts_ptr + run)
        end = tl.load(starts_ptr + run + 1)
        for row in range(start, end, TILE_ROWS):
            tile_ptr = tiles_ptr + 3 * (first + (row - start) // TILE_ROWS)
            tl.store(tile_ptr, run)
            tl.store(tile_ptr + 1, row)
            tl.store(tile_ptr + 2, tl.minimum(end - row, TILE_ROWS))
    else:
        for tile in range(first, tiles):
            tl.store(tiles_ptr + 3 * tile + 2, 0)
