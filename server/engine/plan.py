"""One step, decided: what the scheduler tells the runner. Immutable, built once, then dropped."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    chunks: list[Chunk], ranks: list[int], block_size: int, device: torch.device
) -> StepPlan:
    """Lays chunks out as one flat batch. `ranks[slot]` is the rank of the adapter in it."""
    ordered = sorted(chunks, key=lambda chunk: (chunk.count > 1, chunk.slot))
    token_ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    starts, sample_rows, sampled = [0], [], []
    width = max(-(-(chunk.start + chunk.count) // block_size) for chunk in ordered)
    tables = torch.zeros(len(ordered), width, dtype=torch.int64)
    for row, chunk in enumerate(ordered):
        end = chunk.start + chunk.count
        table = chunk.sequence.block_table
        token_ids += chunk.token_ids
        positions += range(chunk.start, end)
        places += (
            table[at // block_size] * block_size + at % block_size for at in range(chunk.start, end)
        )
        starts.append(len(token_ids))
        if chunk.samples:
            sample_rows.append(len(token_ids) - 1)
            sampled.append(chunk)
        used = -(-end // block_size)
        tables[row, :used] = torch.tensor(table[:used])
    padding = rows_for(len(token_ids)) - len(token_ids)
    runs = [(chunk.count, chunk.slot) for chunk in ordered]
    return StepPlan(
        chunks=tuple(ordered),
        token_ids=torch.tensor(token_ids + [0] * padding, device=device),
        positions=torch.tensor(positions + [0] * padding, device=device),
        query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        write_places=torch.tensor(places, device=device),
        sample_rows=torch.tensor(sample_rows, dtype=torch.int64, device=device),
        decodes=sum(1 for chunk in ordered if chunk.count == 1),
        sampled=tuple(sampled),
        segments=plan_segments(runs + [(padding, NO_ADAPTER)] if padding else runs, ranks, device),
    )
