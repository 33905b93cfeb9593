"""Which version lies in which slot, and who uses it. Bookkeeping only: no tensors here."""

from collections.abc import Iterator
from dataclasses import dataclass

from server.adapters.eviction import EvictionPolicy, Lru
from server.adapters.slot_rows import SlotRows
from server.kernels.backend import rows_for_rank


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """A slot, and the rows that it has in every module's stack."""

    slot: int
    rows: range


@dataclass(frozen=True, slots=True)
class SlotLease:
    """A running sequence's hold on a slot; given back exactly once, by identity."""

    slot: int
    digest: str
    number: int  # unique among all leases of a table


class SlotTable:
    """`capacity` slots that share `rows`, reference-counted by leases; `policy` says who goes.

    Must stay true: a digest lies in at most one slot; a slot with a lease, or pinned, keeps its
    adapter and its rows; a row belongs to at most one slot; a lease is released exactly once.
    """

    def __init__(self, capacity: int, rows: int, policy: EvictionPolicy | None = None) -> None:
        """`policy`: one of its own; None for Lru."""
        if capacity < 1:
            raise ValueError("a slot table needs at least one slot")
        self.capacity = capacity
        self.rows = rows
        self.evictions = 0
        self._policy = Lru() if policy is None else policy
        self._rows = SlotRows(rows)
        self._place_of: dict[str, SlotPlace] = {}
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
        return tuple(self._place_of)

    @property
    def rows_used(self) -> int:
        """Rows of the adapters in slots."""
        return self._rows.used

    @property
    def pinned(self) -> tuple[str, ...]:
        """Digests that keep their slots."""
        return tuple(self._pinned)

    @property
    def rows_pinned(self) -> int:
        """Rows of the adapters that keep their slots."""
        return sum(len(self._place_of[digest].rows) for digest in self._pinned)

    def holds(self, digest: str) -> bool:
        return digest in self._place_of

    def rows_of(self, digest: str) -> int:
        """Rows of an adapter in a slot. Raises KeyError if it is in none."""
        return len(self._place_of[digest].rows)

    def lease(self, digest: str) -> SlotLease:
        """A lease on the slot that holds `digest`. Raises KeyError if none does."""
        slot = self._place_of[digest].slot
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
        if digest not in self._place_of:
            raise KeyError(digest)
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """No error if it is not pinned."""
        self._pinned.discard(digest)

    def assign(self, digest: str, rank: int, *, load_s: float = 0.0) -> SlotPlace | None:
        """A slot for `digest`, free or taken from whom the policy names, with rows for its rank.

        `load_s`: how long it took to get it from disk. The caller writes the slot before anyone
        leases it. None, and nobody has gone, when even all without a lease or a pin would not
        leave room enough in one piece. Raises ValueError if `digest` has a slot already.
        """
        if digest in self._place_of:
            raise ValueError(f"{digest} is resident already")
        victims = self._in_the_way(rank)
        if victims is None:
            return None
        for victim in victims:
            self._evict(victim)
        rows = self._rows.take(rank)
        assert rows is not None, "room was made, and is not there"
        place = self._place_of[digest] = SlotPlace(self._free.pop(), rows)
        self._policy.insert(digest, size=len(rows), load_s=load_s)
        return place

    def check(self) -> None:
        """Recounts everything. Raises AssertionError on drift."""
        places = list(self._place_of.values())
        slots = [place.slot for place in places]
        assert len(set(slots)) == len(slots), "two digests in one slot"
        assert sorted(slots + self._free) == list(range(self.capacity)), "a slot is lost"
        self._rows.check(place.rows for place in places)
        count = [0] * self.capacity
        for lease in self._leases.values():
            place = self._place_of.get(lease.digest)
            assert place is not None and place.slot == lease.slot, f"{lease} lies elsewhere"
            count[lease.slot] += 1
        assert count == self._count, "lease counts drifted"
        assert self._pinned <= self._place_of.keys(), "a pinned adapter lost its slot"
        assert self._policy.digests() == self._place_of.keys(), "the policy knows others"

    def _victims(self) -> Iterator[str]:
        """Who may be evicted, in the order in which they should go."""
        gone: set[str] = set()
        while victim := self._policy.victim(lambda one: self._may_go(one) and one not in gone):
            gone.add(victim)
            yield victim

    def _may_go(self, digest: str) -> bool:
        return not self._count[self._place_of[digest].slot] and digest not in self._pinned

    def _in_the_way(self, rank: int) -> list[str] | None:
        """Whom to evict for a slot of this rank, as few as will do; None if it cannot be had.

        Victims go one after another until there is room; of these only those in its way do.
        """
        trial, found = self._rows.copy(), self._rows.find(rank)
        gone: list[str] = []
        victims = self._victims()
        while found is None or not (self._free or gone):
            victim = next(victims, None)
            if victim is None:
                return None
            gone.append(victim)
            room = trial.give_back(self._place_of[victim].rows)
            if found is None and len(room) >= rows_for_rank(rank):
                found = trial.find(rank)
        in_the_way = [digest for digest in gone if _meet(self._place_of[digest].rows, found)]
        return in_the_way if in_the_way or self._free else gone[:1]

    def _evict(self, digest: str) -> None:
        self._policy.remove(digest)
        place = self._place_of.pop(digest)
        self._rows.give_back(place.rows)
        self._free.append(place.slot)
        self.evictions += 1


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
