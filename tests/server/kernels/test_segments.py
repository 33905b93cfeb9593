"""Segments: neighbours of one slot merge, offsets cover the rows."""

import pytest

from server.kernels.segments import NO_ADAPTER, Segment, plan_segments


def test_neighbours_of_one_slot_are_one_segment() -> None:
    plan = plan_segments([(1, 0), (1, 0), (4, NO_ADAPTER), (2, 1)], ranks=[8, 3])
    assert plan.items == (
        Segment(0, 2, 0, rank=8),
        Segment(2, 6, NO_ADAPTER, rank=0),
        Segment(6, 8, 1, rank=3),
    )
    assert plan.starts.tolist() == [0, 2, 6, 8]
    assert plan.slots.tolist() == [0, NO_ADAPTER, 1]
    assert plan.live_slots == {0, 1}
    assert plan.tokens == 8


@pytest.mark.parametrize(
    ("ranks", "room"), [([1, 8], 16), ([8, 17], 64), ([128, 8], 256), ([1024, 1], 1024)], ids=str
)
def test_the_room_for_ranks_is_one_of_few_numbers(ranks: list[int], room: int) -> None:
    assert plan_segments([(1, 0), (3, NO_ADAPTER), (1, 1)], ranks).rank_room == room
    assert plan_segments([(3, NO_ADAPTER)], ranks).rank_room == 0


def test_an_empty_run_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="a run of 0 rows"):
        plan_segments([(0, 1)], ranks=[4, 4])


def test_what_is_the_same_as_before_is_handed_on() -> None:
    before = plan_segments([(2, 0), (1, 1)], ranks=[8, 3])
    assert plan_segments([(1, 0), (1, 0), (1, 1)], [8, 3], previous=before) is before
    for runs, ranks in (([(2, 0), (1, 1)], [8, 4]), ([(1, 0), (2, 1)], [8, 3]), ([(3, 0)], [8, 3])):
        other = plan_segments(runs, ranks, previous=before)
        assert other.items == plan_segments(runs, ranks).items != before.items
        assert other.slots.tolist() == [item.slot for item in other.items]
