"""Slots: a policy chooses among those without a lease; rows by rank; leases end exactly once."""

import random

import pytest

from server.adapters.eviction import Lfu
from server.adapters.slots import SlotLease, SlotPlace, SlotTable


def test_the_least_recently_used_without_a_lease_goes() -> None:
    table = SlotTable(2, rows=16)
    assert table.assign("a", rank=8) == SlotPlace(0, range(8))
    assert table.assign("b", rank=8) == SlotPlace(1, range(8, 16))
    table.release(table.lease("a"))  # b is now the older one
    assert table.assign("c", rank=8) == SlotPlace(1, range(8, 16))
    assert table.resident == ("a", "c")
    assert table.evictions == 1


def test_a_slot_with_a_lease_is_never_reassigned() -> None:
    table = SlotTable(1, rows=8)
    table.assign("a", rank=4)
    first, second = table.lease("a"), table.lease("a")
    table.release(first)
    assert table.assign("b", rank=4) is None
    table.release(second)
    assert table.assign("b", rank=4) == SlotPlace(0, range(8))


def test_a_high_rank_and_many_low_ones_share_what_they_need_together() -> None:
    table = SlotTable(64, rows=128 + 63 * 8)
    for number in range(64):
        assert table.assign(f"d{number}", rank=128 if number == 20 else 8) is not None
    table.check()
    assert (table.evictions, table.rows_used) == (0, 128 + 63 * 8)


def test_a_high_rank_takes_the_place_of_several() -> None:
    """Of the least recently used, and no more of them than are in its way."""
    table = SlotTable(8, rows=64)
    for name in "abcdefgh":
        table.assign(name, rank=8)
    for name in "bac":
        table.release(table.lease(name))  # the oldest are now d, e, f, g, h, b
    assert table.assign("high", rank=20) == SlotPlace(5, range(24, 48))
    assert set(table.resident) == {"g", "h", "b", "a", "c", "high"}
    assert table.evictions == 3
    table.check()


def test_only_those_in_the_way_go() -> None:
    """a is the oldest, but lies beside a lease: its rows would be of no use."""
    table = SlotTable(4, rows=32)
    for name in "abcd":
        table.assign(name, rank=8)
    table.lease("b")
    assert table.assign("high", rank=16) == SlotPlace(3, range(16, 32))
    assert set(table.resident) == {"a", "b", "high"}


def test_nobody_goes_where_leases_leave_no_room_in_one_piece() -> None:
    table = SlotTable(4, rows=32)
    for name in "abcd":
        table.assign(name, rank=8)
    lease = table.lease("b")
    assert table.assign("high", rank=24) is None
    assert (set(table.resident), table.evictions) == (set("abcd"), 0)
    table.release(lease)
    assert table.assign("high", rank=24) is not None


def test_a_slot_may_be_missing_where_rows_are_not() -> None:
    table = SlotTable(2, rows=64)
    table.assign("a", rank=8)
    table.assign("b", rank=8)
    assert table.assign("c", rank=8) == SlotPlace(0, range(8))
    assert table.resident == ("b", "c")


def test_a_pinned_adapter_keeps_its_slot_and_rows_without_a_lease() -> None:
    table = SlotTable(2, rows=16)
    table.assign("a", rank=8)
    table.pin("a")
    table.assign("b", rank=8)
    assert table.assign("c", rank=8) == SlotPlace(1, range(8, 16))
    assert table.assign("high", rank=16) is None
    table.release(table.lease("c"))
    table.check()
    assert (table.pinned, table.rows_pinned, table.leases) == (("a",), 8, 0)
    table.unpin("a")
    table.unpin("a")  # no error
    assert table.assign("high", rank=16) is not None
    with pytest.raises(KeyError):
        table.pin("a")


def test_the_policy_chooses() -> None:
    table = SlotTable(2, 16, Lfu())
    for digest in "ab":
        table.assign(digest, rank=8)
    for digest in "aab":
        table.release(table.lease(digest))
    assert table.assign("c", rank=8) == SlotPlace(1, range(8, 16)), "b, though it was used later"


def test_a_lease_is_released_once() -> None:
    table = SlotTable(1, rows=8)
    table.assign("a", rank=4)
    lease = table.lease("a")
    table.release(lease)
    with pytest.raises(ValueError, match="is not held"):
        table.release(lease)
    with pytest.raises(ValueError, match="is not held"):
        table.release(SlotLease(0, "a", 0))


def test_a_digest_has_one_slot() -> None:
    table = SlotTable(2, rows=16)
    table.assign("a", rank=4)
    with pytest.raises(ValueError, match="resident already"):
        table.assign("a", rank=4)


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_keep_the_books(seed: int) -> None:
    draw = random.Random(seed)
    table = SlotTable(draw.randint(1, 6), rows=8 * draw.randint(1, 12))
    ranks = {f"d{number}": draw.choice([1, 4, 8, 16, 40, 64]) for number in range(8)}
    held: list[SlotLease] = []
    for _ in range(400):
        digest = draw.choice(list(ranks))
        if held and draw.random() < 0.45:
            table.release(held.pop(draw.randrange(len(held))))
        elif table.holds(digest):
            held.append(table.lease(digest))
        else:
            before = {lease.digest for lease in held}
            evictions, place = table.evictions, table.assign(digest, ranks[digest])
            assert before <= set(table.resident), "a leased adapter was evicted"
            assert (place is not None) is table.holds(digest)
            if place is None:
                assert table.evictions == evictions, "someone has gone for nothing"
            else:
                assert ranks[digest] <= len(place.rows) < ranks[digest] + 8
        table.check()
        assert table.leases == len(held)


def test_without_leases_whatever_fits_into_all_rows_gets_a_slot() -> None:
    draw = random.Random(5)
    table = SlotTable(6, rows=64)
    for number in range(300):
        assert table.assign(f"d{number}", rank=draw.randint(1, 64)) is not None
        table.check()
