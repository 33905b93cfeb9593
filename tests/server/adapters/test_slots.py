"""Slots: the policy chooses among those without a lease; a lease is given back exactly once."""

import random

import pytest

from server.adapters.eviction import Lfu
from server.adapters.slots import SlotLease, SlotTable


def test_the_least_recently_used_without_a_lease_goes() -> None:
    table = SlotTable(2)
    assert table.assign("a") == 0
    assert table.assign("b") == 1
    table.release(table.lease("a"))  # b is now the older one
    assert table.assign("c") == 1
    assert table.resident == ("a", "c")
    assert table.evictions == 1


def test_a_slot_with_a_lease_is_never_reassigned() -> None:
    table = SlotTable(1)
    table.assign("a")
    first, second = table.lease("a"), table.lease("a")
    table.release(first)
    assert table.assign("b") is None
    table.release(second)
    assert table.assign("b") == 0


def test_a_pinned_adapter_keeps_its_slot_without_a_lease() -> None:
    table = SlotTable(2)
    table.assign("a")
    table.pin("a")
    table.assign("b")
    assert table.assign("c") == 1
    table.release(table.lease("c"))
    table.check()
    assert (table.pinned, table.leases) == (("a",), 0)
    table.unpin("a")
    table.unpin("a")  # no error
    assert table.assign("d") == 0
    with pytest.raises(KeyError):
        table.pin("a")


def test_the_policy_chooses() -> None:
    table = SlotTable(2, Lfu())
    for digest in "ab":
        table.assign(digest)
    for digest in "aab":
        table.release(table.lease(digest))
    assert table.assign("c") == 1, "b, though it was used later"


def test_a_lease_is_released_once() -> None:
    table = SlotTable(1)
    table.assign("a")
    lease = table.lease("a")
    table.release(lease)
    with pytest.raises(ValueError, match="is not held"):
        table.release(lease)
    with pytest.raises(ValueError, match="is not held"):
        table.release(SlotLease(0, "a", 0))


def test_a_digest_has_one_slot() -> None:
    table = SlotTable(2)
    table.assign("a")
    with pytest.raises(ValueError, match="resident already"):
        table.assign("a")


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_keep_the_books(seed: int) -> None:
    draw = random.Random(seed)
    table = SlotTable(draw.randint(1, 5))
    held: list[SlotLease] = []
    for _ in range(400):
        digest = f"d{draw.randrange(8)}"
        if held and draw.random() < 0.45:
            table.release(held.pop(draw.randrange(len(held))))
        elif table.holds(digest):
            held.append(table.lease(digest))
        else:
            before = {lease.digest for lease in held}
            table.assign(digest)
            assert before <= set(table.resident), "a leased adapter was evicted"
        table.check()
        assert table.leases == len(held)
