"""Paged attention straight from blocks, for decodes and chunks of prompts alike, and cache writes.

Softmax as it goes along in float32: FlashAttention, arXiv:2205.14135; few queries over long
contexts are split over programs and put together after: Flash-Decoding. Blocks of keys are found
through block tables: PagedAttention, arXiv:2309.06180. Query heads that share keys are rows of one
tile, so that keys are read once for all of them.
"""

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.kernels.triton.dots import block_for, dot_form
from server.kernels.triton.tiles import cut, tile_rows_for

WANTED_PROGRAMS = 256
"""So many keep a large GPU busy; with fewer tiles each is split over its keys."""
LEAST_SPLIT_KEYS = 256
MOST_KEYS = 64  # at once
WIDE_HEAD = 256  # numbers; from here on half as many


@dataclass(slots=True)
class AttentionStep:
    """One step's attention, the same for all layers. Nothing here is read on the host.

    `tiles` fills as layers ask, keyed by rows per tile: layers of one shape share theirs.
    """

    starts: Tensor  # [chunks + 1] int32
    positions: Tensor  # [rows] int64; a row sees the keys of its sequence up to its own position
    tables: Tensor  # [chunks, blocks] int64
    places: Tensor  # [tokens] int64: block · block_size + offset; negative: not to be written
    tiles: dict[int, Tensor] = field(default_factory=dict)

    def write(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
        """Copies the step's keys and values into the cache.

        key [tokens, kv_heads, key_dim]; value [tokens, kv_heads, value_dim], last dimensions
        dense; keys, values as `attend` has them.
        """
        tokens, kv_heads, key_dim = key.shape
        value_dim = value.shape[2]
        assert key.stride(2) == 1 and value.stride(2) == 1
        _write[(tokens,)](
            key, key.stride(0), key.stride(1), value, value.stride(0), value.stride(1),
            keys, values, self.places, kv_heads, key_dim, value_dim,
            HEADS=block_for(kv_heads, least=1), KEY_DIM=block_for(key_dim),
            VALUE_DIM=block_for(value_dim),
        )  # fmt: skip

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        """Each row of a chunk attends to its own sequence, up to its own position.

        query [rows, heads, key_dim], last dimension dense; keys [blocks, block_size, kv_heads,
        key_dim] and values [blocks, block_size, kv_heads, value_dim], dense; sinks [heads];
        out [rows, heads, value_dim], dense: rows of no chunk are left as they are. `window`:
        tokens seen at most, the row's own included. Softmax and sums in float32.
        """
        rows, heads, key_dim = query.shape
        block_size, kv_heads, value_dim = keys.shape[1], keys.shape[2], values.shape[3]
        assert query.stride(2) == 1 and out.is_contiguous()
        share, wide, form = heads // kv_heads, _wide(query.dtype), dot_form(query.dtype)
        lines = max(
            tile_rows_for(rows, self.tables.shape[0]) // wide, block_for(share)
        )  # of a tile: its rows, once for each head that shares keys
        tiles = self._cut(lines // share)
        splits = _splits(tiles.shape[0] * kv_heads, self.tables.shape[1] * block_size)
        parts, maxima, sums = out, out, out
        if splits > 1:
            parts = out.new_empty(splits, rows, heads, value_dim, dtype=torch.float32)
            maxima, sums = out.new_empty(2, splits, rows, heads, dtype=torch.float32)
        at_once = MOST_KEYS // wide // (2 if max(key_dim, value_dim) >= WIDE_HEAD else 1)
        _attend[(tiles.shape[0], kv_heads, splits)](
            query, query.stride(0), query.stride(1), keys, values, self.tables,
            self.tables.stride(0), self.positions, tiles, out if sinks is None else sinks,
            parts, maxima, sums, rows, heads, kv_heads, block_size, key_dim, value_dim,
            scale, softcap or 1.0, window or 0,
            SHARE=share, LINES=lines, KEYS=at_once,
            KEY_DIM=block_for(key_dim), VALUE_DIM=block_for(value_dim),
            CAPPED=softcap is not None, WINDOWED=window is not None, SINKS=sinks is not None,
            SPLIT=splits > 1, DOT=form.dtype, PRECISION=form.precision,
        )  # fmt: skip
        if splits > 1:
            _join[(tiles.shape[0], kv_heads)](
                parts, maxima, sums, tiles, out, rows, heads, splits, value_dim,
                SHARE=share, LINES=lines, VALUE_DIM=block_for(value_dim),
            )  # fmt: skip

    def _cut(self, tile_rows: int) -> Tensor:
        if tile_rows not in self.tiles:
            self.tiles[tile_rows] = cut(self.starts, self.positions.shape[0], tile_rows)
        return self.tiles[tile_rows]


def _splits(programs: int, keys: int) -> int:
    """Parts that each tile's keys are cut into."""
    return max(1, min(WANTED_PROGRAMS // programs, keys // LEAST_SPLIT_KEYS))


def _wide(dtype: torch.dtype) -> int:
    """Tiles shrink by so much: what a program holds must fit in a small GPU's shared memory."""
    return 2 if dtype == torch.float32 else 1


@triton.jit
def _lines(tiles_ptr, tile, kv_head, SHARE: tl.constexpr, LINES: tl.constexpr):
    """Row and head of each line of a tile, and whether there is such a line.

    Line i is row i // SHARE and head i % SHARE of those that share one head of keys.
    """
    line = tl.arange(0, LINES)
    count = tl.load(tiles_ptr + 3 * tile + 2)
    row = (tl.load(tiles_ptr + 3 * tile + 1) + line // SHARE).to(tl.int64)
    return row, kv_head * SHARE + line % SHARE, line < count * SHARE


@triton.jit
def _span(
    position, used, window, split, KEYS: tl.constexpr, WINDOWED: tl.constexpr, SPLIT: tl.constexpr
):
    """First key, and end, of those that some line sees; with SPLIT of this split's share."""
    begin = 0
    end = tl.max(position) + 1
    if WINDOWED:
        begin = tl.maximum(tl.min(tl.where(used, position, end)) - window + 1, 0)
    if SPLIT:
        per_split = tl.cdiv(tl.cdiv(end - begin, tl.num_programs(2)), KEYS) * KEYS
        begin += split * per_split
        end = tl.minimum(end, begin + per_split)
    return begin, end


@triton.jit
def _scores(
    query, key, n, position, scale, softcap, window,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores [lines, keys] of the keys at positions n; -inf where a line may not look."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if CAPPED:  # softcap · tanh(scores / softcap)
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    seen = n[None, :] <= position[:, None]
    if WINDOWED:
        seen &= n[None, :] > position[:, None] - window
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _raised(maxima, more):
    """The new maxima, the level to take weights at, and what sums so far are worth there.

    A line that has seen no key yet has -inf for its maximum, and level 0.
    """
    higher = tl.maximum(maxima, more)
    level = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, level, tl.exp(maxima - level)


@triton.jit
def _attend(
    query_ptr, row_stride, head_stride, keys_ptr, values_ptr, tables_ptr, table_stride,
    positions_ptr, tiles_ptr, sinks_ptr, parts_ptr, maxima_ptr, sums_ptr,
    rows, heads, kv_heads, block_size, key_dim, value_dim, scale, softcap, window,
    SHARE: tl.constexpr, LINES: tl.constexpr, KEYS: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
    SPLIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile and one head of keys, over one split of the keys that the tile sees.

    Without SPLIT the result goes to parts_ptr, which is then `out`; with it the weighted sums of
    values, the maxima and the sums of weights are kept, for _join.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    if tl.load(tiles_ptr + 3 * tile + 2) == 0:
        return
    row, head, used = _lines(tiles_ptr, tile, kv_head, SHARE, LINES)
    position = tl.load(positions_ptr + row, mask=used, other=-1).to(tl.int32)
    begin, end = _span(position, used, window, split, KEYS, WINDOWED, SPLIT)
    d = tl.arange(0, KEY_DIM)[None, :]
    e = tl.arange(0, VALUE_DIM)[None, :]
    query_at = query_ptr + (row * row_stride + head * head_stride)[:, None] + d
    query = tl.load(query_at, mask=used[:, None] & (d < key_dim), other=0.0).to(DOT)
    maxima = tl.full([LINES], float("-inf"), dtype=tl.float32)
    sums = tl.zeros([LINES], dtype=tl.float32)
    if SINKS and split == 0:  # a key with this score and no value, for one split alone
        maxima = tl.load(sinks_ptr + head, mask=used, other=0.0).to(tl.float32)
        sums += 1.0
    total = tl.zeros([LINES, VALUE_DIM], dtype=tl.float32)
    table_ptr = tables_ptr + tl.load(tiles_ptr + 3 * tile).to(tl.int64) * table_stride
    for at in range(begin, end, KEYS):
        n = at + tl.arange(0, KEYS)
        block = tl.load(table_ptr + n // block_size, mask=n < end, other=0).to(tl.int64)
        place = ((block * block_size + n % block_size) * kv_heads + kv_head)[:, None]
        there = (n < end)[:, None]
        key = tl.load(keys_ptr + place * key_dim + d, mask=there & (d < key_dim), other=0.0)
        value = tl.load(values_ptr + place * value_dim + e, mask=there & (e < value_dim), other=0.0)
        asked = tl.where(n < end, n, 2147483647)  # past every position
        scores = _scores(
            query, key.to(DOT), asked, position, scale, softcap, window, CAPPED, WINDOWED, PRECISION
        )
        maxima, level, fade = _raised(maxima, tl.max(scores, 1))
        weights = tl.exp(scores - level[:, None])
        sums = sums * fade + tl.sum(weights, 1)
        weights = weights.to(value.dtype).to(DOT)
        total = tl.dot(weights, value.to(DOT), total * fade[:, None], input_precision=PRECISION)

    place = row * heads + head
    inside = used[:, None] & (e < value_dim)
    if SPLIT:
        place += split * rows * heads
        tl.store(maxima_ptr + place, maxima, mask=used)
        tl.store(sums_ptr + place, sums, mask=used)
    else:
        total = total / tl.where(sums == 0.0, 1.0, sums)[:, None]
    total = total.to(parts_ptr.dtype.element_ty)
    tl.store(parts_ptr + place[:, None] * value_dim + e, total, mask=inside)


@triton.jit
def _join(
    parts_ptr, maxima_ptr, sums_ptr, tiles_ptr, out_ptr, rows, heads, splits, value_dim,
    SHARE: tl.constexpr, LINES: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """Puts the splits of a tile together, in order."""
    tile = tl.program_id(0)
    if tl.load(tiles_ptr + 3 * tile + 2) == 0:
        return
    row, head, used = _lines(tiles_ptr, tile, tl.program_id(1), SHARE, LINES)
    e = tl.arange(0, VALUE_DIM)[None, :]
    inside = used[:, None] & (e < value_dim)
    place = row * heads + head
    maxima = tl.full([LINES], float("-inf"), dtype=tl.float32)
    sums = tl.zeros([LINES], dtype=tl.float32)
    total = tl.zeros([LINES, VALUE_DIM], dtype=tl.float32)
    for split in range(0, splits):
        at = place + split * rows * heads
        highest = tl.load(maxima_ptr + at, mask=used, other=float("-inf"))
        maxima, level, fade = _raised(maxima, highest)
        weight = tl.exp(highest - level)
        sums = sums * fade + weight * tl.load(sums_ptr + at, mask=used, other=0.0)
        part = tl.load(parts_ptr + at[:, None] * value_dim + e, mask=inside, other=0.0)
        total = total * fade[:, None] + weight[:, None] * part
    total = total / tl.where(sums == 0.0, 1.0, sums)[:, None]
    out_at = out_ptr + place[:, None] * value_dim + e
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _write(
    key_ptr, key_stride, key_head_stride, value_ptr, value_stride, value_head_stride,
    keys_ptr, values_ptr, places_ptr, kv_heads, key_dim, value_dim,
    HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """One token's keys and values, all heads."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places_ptr + token)
    if place < 0:
        return
    head = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, KEY_DIM)[None, :]
    inside = (head < kv_heads) & (d < key_dim)
    key = tl.load(key_ptr + token * key_stride + head * key_head_stride + d, mask=inside)
    tl.store(keys_ptr + (place * kv_heads + head) * key_dim + d, key, mask=inside)
    e = tl.arange(0, VALUE_DIM)[None, :]
    inside = (head < kv_heads) & (e < value_dim)
    value = tl.load(value_ptr + token * value_stride + head * value_head_stride + e, mask=inside)
    tl.store(values_ptr + (place * kv_heads + head) * value_dim + e, value, mask=inside)
