"""Which version lies in which slot, and who uses it. Bookkeeping only: no tensors here."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotLease:
    """A running sequence's hold on a slot; given back exactly once, by identity."""

    slot: int
    digest: str
    number: int  # unique among all leases of a table


class SlotTable:
    """`capacity` slots, reference-counted by leases; LRU among those with none.

    Must stay true: a digest lies in at most one slot; a slot with a lease is never reassigned;
    a lease is released exactly once.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a slot table needs at least one slot")
        self.capacity = capacity
        self.evictions = 0
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._free = list(range(capacity - 1, -1, -1))
        self._leases: dict[int, SlotLease] = {}
        self._count = [0] * capacity
        self._next_number = 0

    @property
    def leases(self) -> int:
        """Leases held now."""
        return len(self._leases)

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests in slots, least recently used first."""
        return tuple(self._slot_of)

    def holds(self, digest: str) -> bool:
        return digest in self._slot_of

    def lease(self, digest: str) -> SlotLease:
        """A lease on the slot that holds `digest`. Raises KeyError if none does."""
        slot = self._slot_of[digest]
        self._slot_of.move_to_end(digest)
        lease = SlotLease(slot, digest, self._next_number)
        self._next_number += 1
        self._leases[lease.number] = lease
        self._count[slot] += 1
        return lease

    def release(self, lease: SlotLease) -> None:
        """Raises ValueError on a lease that was released before, or is another table's."""
        if self._leases.get(lease.number) is not lease:
            raise ValueError(f"{lease} is not held")
        del self._leases[lease.number]
        self._count[lease.slot] -= 1

    def assign(self, digest: str) -> int | None:
        """A slot for `digest`, free or taken from the least recently used without a lease.

        The caller writes the slot before anyone leases it. None when every slot is leased.
        Raises ValueError if `digest` has a slot already.
        """
        if digest in self._slot_of:
            raise ValueError(f"{digest} is resident already")
        if self._free:
            slot = self._free.pop()
        else:
            victim = next((d for d, s in self._slot_of.items() if not self._count[s]), None)
            if victim is None:
                return None
            slot = self._slot_of.pop(victim)
            self.evictions += 1
        self._slot_of[digest] = slot
        return slot

    def check(self) -> None:
        """Recounts everything. Raises AssertionError on drift."""
        slots = list(self._slot_of.values())
        assert len(set(slots)) == len(slots), "two digests in one slot"
        assert sorted(slots + self._free) == list(range(self.capacity)), "a slot is lost"
        count = [0] * self.capacity
        for lease in self._leases.values():
            assert self._slot_of.get(lease.digest) == lease.slot, f"{lease} lies elsewhere"
            count[lease.slot] += 1
        assert count == self._count, "lease counts drifted"
