"""Rows of slots: the first range that is large enough; neighbours that are free are one."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapters_store.content import LinearShape
from server.adapters.slot_rows import SlotLimits, SlotRows, slot_limits

MODULES = [LinearShape(64, 32), LinearShape(32, 128)]
ROW_BYTES = 256 * 4


def test_ranges_are_as_large_as_the_rank_needs_and_begin_where_the_last_ends() -> None:
    rows = SlotRows(64)
    assert [rows.take(rank) for rank in (1, 8, 9, 24)] == [
        range(8), range(8, 16), range(16, 32), range(32, 56)
    ]  # fmt: skip
    assert rows.used == 56
    assert rows.take(9) is None
    assert rows.take(8) == range(56, 64)


def test_what_is_given_back_is_joined_with_its_free_neighbours() -> None:
    rows = SlotRows(40)
    ranges = [rows.take(8) for _ in range(5)]
    first, second, third, fourth, last = (each for each in ranges if each is not None)
    assert rows.give_back(second) == second
    assert rows.give_back(fourth) == fourth
    assert rows.take(16) is None, "16 rows are free, but apart"
    assert rows.give_back(third) == range(8, 32)
    assert rows.take(24) == range(8, 32)
    assert rows.give_back(last) == last
    assert rows.give_back(first) == first
    rows.check([range(8, 32)])


def test_a_copy_keeps_its_own_books() -> None:
    rows = SlotRows(16)
    taken = rows.take(8)
    assert taken is not None
    trial = rows.copy()
    assert trial.give_back(taken) == range(16)
    assert trial.take(16) == range(16)
    rows.check([taken])


@pytest.mark.parametrize("given", [0, 12, -8])
def test_rows_come_in_granules(given: int) -> None:
    with pytest.raises(ValueError, match="no multiple of 8"):
        SlotRows(given)


def test_misuse_is_refused() -> None:
    rows = SlotRows(16)
    taken = rows.take(8)
    assert taken is not None
    with pytest.raises(ValueError, match="is not handed out"):
        rows.give_back(range(8, 16))
    rows.give_back(taken)
    with pytest.raises(ValueError, match="is not handed out"):
        rows.give_back(taken)
    with pytest.raises(ValueError, match="rank 0"):
        rows.take(0)


def test_check_finds_a_range_that_was_lost() -> None:
    rows = SlotRows(16)
    taken = rows.take(8)
    assert taken is not None
    with pytest.raises(AssertionError, match="a range is lost"):
        rows.check([])
    with pytest.raises(AssertionError, match="without being handed out"):
        rows.check([taken, range(8, 16)])


class Histories(RuleBasedStateMachine):
    """Beside a list of who has each granule, searched by hand."""

    SIZE = 24  # granules

    def __init__(self) -> None:
        super().__init__()
        self.rows = SlotRows(8 * self.SIZE)
        self.owner: list[range | None] = [None] * self.SIZE

    @rule(rank=st.integers(1, 8 * SIZE))
    def take(self, rank: int) -> None:
        granules = -(-rank // 8)
        fits = [
            start
            for start in range(self.SIZE - granules + 1)
            if not any(self.owner[start : start + granules])
        ]
        taken = self.rows.take(rank)
        if not fits:
            assert taken is None
            return
        assert taken == range(8 * fits[0], 8 * (fits[0] + granules))
        self.owner[fits[0] : fits[0] + granules] = [taken] * granules

    @precondition(lambda self: any(self.owner))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        mine = sorted({each for each in self.owner if each is not None}, key=lambda r: r.start)
        gone = data.draw(st.sampled_from(mine))
        self.owner = [None if each == gone else each for each in self.owner]
        joined = self.rows.give_back(gone)
        assert joined.start <= gone.start < gone.stop <= joined.stop
        at, end = joined.start // 8, joined.stop // 8
        assert not any(self.owner[at:end])
        assert at == 0 or self.owner[at - 1]
        assert end == self.SIZE or self.owner[end]

    @invariant()
    def the_books_are_right(self) -> None:
        self.rows.check({each for each in self.owner if each is not None})
        assert self.rows.used == 8 * sum(each is not None for each in self.owner)


TestHistories = Histories.TestCase


@pytest.mark.parametrize(
    ("told", "rows"),
    [
        ({}, 8 * 64),
        ({"max_rank": 32}, 8 * 32),
        ({"max_rank": 20}, 8 * 24),
        ({"slot_bytes": 100 * ROW_BYTES}, 96),
        ({"slot_bytes": 96 * ROW_BYTES, "max_rank": 8}, 96),
        ({"slot_bytes": 96 * ROW_BYTES - 1}, 88),
    ],
    ids=str,
)
def test_how_many_rows_there_are(told: dict[str, int], rows: int) -> None:
    options = {"max_rank": None, "slot_bytes": None} | told
    limits = slot_limits(MODULES, torch.float32, slots=8, **options)
    assert limits == SlotLimits(8, rows, ROW_BYTES, told.get("max_rank"))


def test_bytes_for_no_adapter_at_all() -> None:
    with pytest.raises(ValueError, match=f"takes {8 * ROW_BYTES} bytes on this base"):
        slot_limits(MODULES, torch.float32, slots=8, max_rank=None, slot_bytes=8 * ROW_BYTES - 1)
