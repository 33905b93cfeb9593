"""Which version lies in which slot, and who uses it. Bookkeeping only: no tensors here."""

from dataclasses import dataclass

from server.adapters.eviction import EvictionPolicy, Lru


@dataclass(frozen=True, slots=True)
class SlotLease:
    """A running sequence's hold on a slot; given back exactly once, by identity."""

    slot: int
    digest: str
    number: int  # unique among all leases of a table


class SlotTable:
    """`capacity` slots, reference-counted by leases; `policy` says who goes of those with none.

    Must stay true: a digest lies in at most one slot; a slot with a lease, or pinned, is never
    reassigned; a lease is released exactly once.
    """

    def __init__(self, capacity: int, policy: EvictionPolicy | None = None) -> None:
        """`policy`: one of its own; None for Lru."""
        if capacity < 1:
            raise ValueError("a slot table needs at least one slot")
        self.capacity = capacity
        self.evictions = 0
        self._policy = Lru() if policy is None else policy
        self._slot_of: dict[str, int] = {}
        self._pinned: set[str] = set()
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
        """Digests in slots."""
        return tuple(self._slot_of)

    @property
    def pinned(self) -> tuple[str, ...]:
        """Digests that keep their slots."""
        return tuple(self._pinned)

    def holds(self, digest: str) -> bool:
        return digest in self._slot_of

    def lease(self, digest: str) -> SlotLease:
        """A lease on the slot that holds `digest`. Raises KeyError if none does."""
        slot = self._slot_of[digest]
        self._policy.use(digest)
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

    def pin(self, digest: str) -> None:
        """Keeps `digest` in its slot until `unpin`. Raises KeyError if it is in none."""
        if digest not in self._slot_of:
            raise KeyError(digest)
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """No error if it is not pinned."""
        self._pinned.discard(digest)

    def assign(self, digest: str, *, load_s: float = 0.0) -> int | None:
        """A slot for `digest`, free or taken from whom the policy names.

        `load_s`: how long it took to get it from disk. The caller writes the slot before anyone
        leases it. None when every slot is leased or pinned. Raises ValueError if `digest` has a
        slot already.
        """
        if digest in self._slot_of:
            raise ValueError(f"{digest} is resident already")
        if self._free:
            slot = self._free.pop()
        else:
            victim = self._policy.victim(self._may_go)
            if victim is None:
                return None
            self._policy.remove(victim)
            slot = self._slot_of.pop(victim)
            self.evictions += 1
        self._slot_of[digest] = slot
        self._policy.insert(digest, size=1, load_s=load_s)
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
        assert self._pinned <= self._slot_of.keys(), "a pinned adapter lost its slot"
        assert self._policy.digests() == self._slot_of.keys(), "the policy knows others"

    def _may_go(self, digest: str) -> bool:
        return not self._count[self._slot_of[digest]] and digest not in self._pinned
