"""The rows that slots have in every module's stack: how many there are, and who has which.

Here: SlotLimits, SlotRows. Bookkeeping only: no tensors. A slot has as many rows as its adapter's
rank needs, in one range, which is the same in every module.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from adapters_store.content import LinearShape
from server.kernels.backend import GRANULE, rows_for_rank

DEFAULT_RANK = 64
"""Where neither memory nor a rank is told, there are rows for so high a rank in each slot."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """How many slots there are, the rows that they share, and so the largest rank."""

    slots: int
    rows: int  # a multiple of GRANULE
    row_bytes: int  # of one row, in all modules together
    max_rank: int | None = None  # as the server was told; None: what fits

    def excess(self, rank: int) -> str | None:
        """What is wrong with a rank that is too large, and the remedy; None if it fits."""
        if self.max_rank is not None and rank > self.max_rank:
            return (
                f"over this server's limit of {self.max_rank}; train with r ≤ {self.max_rank}, or "
                f"start the server with --max-rank {rank}"
            )
        if rank > self.rows:
            return (
                f"over the {self.rows} rows that this server's slots have in all; train with "
                f"r ≤ {self.rows}, or start the server with --slot-bytes "
                f"{rows_for_rank(rank) * self.row_bytes} or more"
            )
        return None


def slot_limits(
    modules: Iterable[LinearShape],
    dtype: torch.dtype,
    *,
    slots: int,
    max_rank: int | None,
    slot_bytes: int | None,
) -> SlotLimits:
    """Slots of `slot_bytes` in all; by default, of the largest rank in each.

    Raises ValueError if the bytes hold no adapter at all.
    """
    numbers = sum(shape.in_features + shape.out_features for shape in modules)
    row_bytes = numbers * dtype.itemsize
    rows = slots * rows_for_rank(max_rank or DEFAULT_RANK)
    if slot_bytes is not None:
        rows = slot_bytes // (GRANULE * row_bytes) * GRANULE
    if not rows:
        raise ValueError(
            f"the smallest adapter takes {GRANULE * row_bytes} bytes on this base; give as many"
        )
    return SlotLimits(slots, rows, row_bytes, max_rank)


class SlotRows:
    """`rows` rows, handed out in ranges: each is the first that is free and large enough.

    Must stay true: a row is in one range handed out, or in one free range; free ranges do not
    touch. Ranges begin and end at multiples of GRANULE.
    """

    def __init__(self, rows: int) -> None:
        """Raises ValueError unless `rows` is a multiple of GRANULE, and not 0."""
        if rows < GRANULE or rows % GRANULE:
            raise ValueError(f"{rows} rows are no multiple of {GRANULE}")
        self.rows = rows
        self._free = [range(rows)]  # in order
        self._taken: set[range] = set()

    @property
    def used(self) -> int:
        """Rows handed out."""
        return sum(map(len, self._taken))

    def copy(self) -> "SlotRows":
        """The same books, to try things in."""
        other = SlotRows(self.rows)
        other._free, other._taken = self._free.copy(), self._taken.copy()
        return other

    def find(self, rank: int) -> range | None:
        """What `take` would give."""
        rows = rows_for_rank(rank)
        room = next((room for room in self._free if len(room) >= rows), None)
        return None if room is None else room[:rows]

    def take(self, rank: int) -> range | None:
        """Rows for an adapter of this rank; None where no free range is large enough.

        Raises ValueError if the rank is none.
        """
        if rank < 1:
            raise ValueError(f"an adapter of rank {rank} needs no rows")
        found = self.find(rank)
        if found is None:
            return None
        at = bisect_left(self._free, found.start, key=_start)
        rest = self._free[at][len(found) :]
        self._free[at : at + 1] = [rest] if rest else []
        self._taken.add(found)
        return found

    def give_back(self, taken: range) -> range:
        """Returns the free range that it is part of now.

        Raises ValueError if it was not handed out, or was given back before.
        """
        if taken not in self._taken:
            raise ValueError(f"{taken} is not handed out")
        self._taken.remove(taken)
        at = bisect_left(self._free, taken.start, key=_start)
        first = last = at  # free ranges that it joins: [first, last)
        start, stop = taken.start, taken.stop
        if at > 0 and self._free[at - 1].stop == start:
            first, start = at - 1, self._free[at - 1].start
        if at < len(self._free) and self._free[at].start == stop:
            last, stop = at + 1, self._free[at].stop
        joined = range(start, stop)
        self._free[first:last] = [joined]
        return joined

    def check(self, taken: Iterable[range]) -> None:
        """Recounts, given all ranges that are in use. Raises AssertionError on drift."""
        known = sorted(taken, key=_start)
        assert set(known) == self._taken, "a range is lost, or in use without being handed out"
        assert self._free == sorted(self._free, key=_start), "free ranges are out of order"
        at, was_free = 0, False
        for each in sorted([*known, *self._free], key=_start):
            assert each.start == at, f"row {at} is in no range, or in two"
            assert each and len(each) % GRANULE == 0, f"{each} has no whole granules"
            is_free = each not in self._taken
            assert not (is_free and was_free), f"{each} was not joined with the one before"
            at, was_free = each.stop, is_free
        assert at == self.rows, f"rows from {at} on are lost"


def _start(rows: range) -> int:
    return rows.start
