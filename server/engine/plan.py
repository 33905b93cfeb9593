"""One step, decided: what the scheduler tells the runner. Immutable, built once, then dropped."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.engine.kv_cache import NULL_BLOCK
from server.engine.row_buckets import rows_for
from server.engine.sequence import Sequence
from server.kernels.segments import NO_ADAPTER, SegmentPlan, plan_segments


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of one sequence, from its position `start`. A decode is a chunk of one.

    So is a draft: a token that is checked as if it had been said already. Each has a chunk of its
    own, whose keys and values are written with all others before any is read, so that it attends
    to those ahead of it as it would one step later.
    """

    sequence: Sequence
    start: int
    count: int
    drafted: tuple[int, ...] = ()  # what follows the sequence's tokens, up to this chunk's own

    @property
    def token_ids(self) -> list[int]:
        if self.drafted:
            return [self.drafted[-1]]
        return self.sequence.tokens[self.start : self.start + self.count]

    @property
    def text(self) -> list[int]:
        """All tokens up to this chunk's end, for a chunk that samples: a copy where drafted."""
        tokens = self.sequence.tokens
        return [*tokens, *self.drafted] if self.drafted else tokens

    @property
    def output_length(self) -> int:
        """Tokens that the sequence has put out before the one that this chunk samples."""
        return self.sequence.output_length + len(self.drafted)

    @property
    def samples(self) -> bool:
        """Whether this chunk reaches the sequence's last token, so that a next one is due."""
        return self.start + self.count == len(self.sequence.tokens) + len(self.drafted)

    @property
    def came_true(self) -> bool:
        """Of a draft, once what the chunks ahead of it sampled is the sequence's: whether it has
        grown by this very token."""
        tokens = self.sequence.tokens
        return self.start + 1 == len(tokens) and tokens[-1] == self.drafted[-1]

    @property
    def slot(self) -> int:
        return NO_ADAPTER if self.sequence.lease is None else self.sequence.lease.slot


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A flat batch: decodes first, then longer chunks, each group in slot order."""

    chunks: tuple[Chunk, ...]  # in row order
    token_ids: Tensor  # [rows] int64; rows after the tokens are padding, and nobody reads them
    positions: Tensor  # [rows] int64
    query_starts: Tensor  # [chunks + 1] int32
    block_tables: Tensor  # [chunks, blocks] int64, padded with NULL_BLOCK
    write_places: Tensor  # [tokens] int64, block · block_size + offset
    sample_rows: Tensor  # [samples] int64, rows whose logits are wanted
    decodes: int  # leading chunks of one token
    sampled: tuple[Chunk, ...]  # the chunks of `sample_rows`, in that order
    segments: SegmentPlan

    @property
    def tokens(self) -> int:
        """Rows that are not padding."""
        return self.write_places.shape[0]


def build_plan(
    chunks: list[Chunk],
    ranks: list[int],
    block_size: int,
    device: torch.device,
    previous: SegmentPlan | None = None,
    *,
    pad: bool = True,
) -> StepPlan:
    """Lays chunks out as one flat batch. `ranks[slot]` is the rank of the adapter in it.

    `previous`: the segments of the step before, which are taken over where they are the same.
    `pad`: rows are rounded up to few sizes (row_buckets.py says who wants that).
    """
    ordered = sorted(chunks, key=lambda chunk: (chunk.count > 1, chunk.slot))
    width = max(-(-(chunk.start + chunk.count) // block_size) for chunk in ordered)
    no_blocks = [NULL_BLOCK] * width
    token_ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    tables: list[int] = []
    starts, sample_rows, sampled = [0], [], []
    for chunk in ordered:
        end = chunk.start + chunk.count
        table = chunk.sequence.block_table[: -(-end // block_size)]
        span = range(chunk.start, end)
        token_ids += chunk.token_ids
        positions += span
        places += [table[at // block_size] * block_size + at % block_size for at in span]
        tables += table
        tables += no_blocks[len(table) :]
        if chunk.samples:
            sample_rows.append(starts[-1] + chunk.count - 1)
            sampled.append(chunk)
        starts.append(starts[-1] + chunk.count)
    padding = rows_for(starts[-1]) - starts[-1] if pad else 0
    nothing = [0] * padding
    parts = (token_ids + nothing, positions + nothing, places, sample_rows, tables, starts)
    ids, at, write_places, rows, block_tables, query_starts = _tensors(parts, device)
    runs = [(chunk.count, chunk.slot) for chunk in ordered]
    if padding:
        runs.append((padding, NO_ADAPTER))
    return StepPlan(
        chunks=tuple(ordered),
        token_ids=ids,
        positions=at,
        query_starts=query_starts.to(torch.int32),
        block_tables=block_tables.view(len(ordered), width),
        write_places=write_places,
        sample_rows=rows,
        decodes=sum(1 for chunk in ordered if chunk.count == 1),
        sampled=tuple(sampled),
        segments=plan_segments(runs, ranks, device, previous),
    )


def _tensors(parts: tuple[list[int], ...], device: torch.device) -> tuple[Tensor, ...]:
    """Each list as int64 on the device: parts of one tensor, for one copy costs less than six."""
    flat: list[int] = []
    for part in parts:
        flat += part
    together = torch.from_numpy(np.array(flat, np.int64)).to(device)
    return together.split_with_sizes([len(part) for part in parts])
