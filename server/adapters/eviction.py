"""Who gives way when a tier of adapters is full: one interface, three policies.

A tier (the slots, the host cache) tells its policy what comes, is used and goes, and asks for a
victim among those that it can spare. Here: nothing but that choice; no sizes of tiers, no leases.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal, Protocol

EvictionName = Literal["lru", "lfu", "cost"]

AGE_AFTER = 10
"""Counts of uses are halved after so many uses for each resident adapter: a favourite of a hundred
uses, asked for no more, has none left when seventy per adapter have gone by."""


class EvictionPolicy(Protocol):
    """Must stay true: it knows exactly the digests that its tier holds."""

    def insert(self, digest: str, *, size: int, load_s: float) -> None:
        """`digest` came, for a use. `size` in what the tier runs out of: bytes, or slots.

        `load_s`: how long it took to get it from disk, as it would again.
        """
        ...

    def use(self, digest: str) -> None:
        """`digest` was used again. Raises KeyError if it is not resident."""
        ...

    def remove(self, digest: str) -> None:
        """`digest` went. Raises KeyError if it was not resident."""
        ...

    def victim(self, may_go: Callable[[str], bool]) -> str | None:
        """Who should go next among those that `may_go`; None if there are none. Changes nothing."""
        ...

    def digests(self) -> Set[str]:
        """Those that are resident, as far as it was told."""
        ...


class Lru:
    """Least recently used."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def insert(self, digest: str, *, size: int, load_s: float) -> None:
        self._order[digest] = None

    def use(self, digest: str) -> None:
        self._order.move_to_end(digest)

    def remove(self, digest: str) -> None:
        del self._order[digest]

    def victim(self, may_go: Callable[[str], bool]) -> str | None:
        return next(filter(may_go, self._order), None)

    def digests(self) -> Set[str]:
        return self._order.keys()


class AgedCounts:
    """Uses of each resident digest, all halved from time to time so that old ones fade.

    Source: the reset of TinyLFU, arXiv:1512.00727. Halving costs a tenth of a step per use.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._uses = 0  # since the counts were halved

    def insert(self, digest: str) -> None:
        self._counts[digest] = 0
        self.use(digest)

    def use(self, digest: str) -> None:
        self._counts[digest] += 1
        self._counts.move_to_end(digest)
        self._uses += 1
        if self._uses >= AGE_AFTER * len(self._counts):
            self._uses = 0
            for one in self._counts:
                self._counts[one] //= 2

    def remove(self, digest: str) -> None:
        del self._counts[digest]

    def __getitem__(self, digest: str) -> int:
        return self._counts[digest]

    def __iter__(self) -> Iterator[str]:
        """Least recently used first."""
        return iter(self._counts)

    def digests(self) -> Set[str]:
        return self._counts.keys()


class Lfu:
    """Least often used, by counts that age; of equals, the least recently used."""

    def __init__(self) -> None:
        self._counts = AgedCounts()

    def insert(self, digest: str, *, size: int, load_s: float) -> None:
        self._counts.insert(digest)

    def use(self, digest: str) -> None:
        self._counts.use(digest)

    def remove(self, digest: str) -> None:
        self._counts.remove(digest)

    def victim(self, may_go: Callable[[str], bool]) -> str | None:
        return min(filter(may_go, self._counts), key=self._counts.__getitem__, default=None)

    def digests(self) -> Set[str]:
        return self._counts.digests()


@dataclass(slots=True)
class _Worth:
    per_use: float  # load_s / size
    clock: float  # at its last use


class Cost:
    """Least worth its room: uses x seconds to load it / size, on a clock that makes it recent.

    An adapter's priority is the clock at its last use + that worth; the clock is the priority of
    the last one that went, so that what is not used is overtaken by what is. Source: GreedyDual-
    Size-Frequency, Cherkasova, HP Labs HPL-98-69R1, 1998; its counts never age, ours do.
    """

    def __init__(self) -> None:
        self._counts = AgedCounts()
        self._worth: dict[str, _Worth] = {}
        self._clock = 0.0

    def insert(self, digest: str, *, size: int, load_s: float) -> None:
        self._counts.insert(digest)
        self._worth[digest] = _Worth(load_s / size, self._clock)

    def use(self, digest: str) -> None:
        self._counts.use(digest)
        self._worth[digest].clock = self._clock

    def remove(self, digest: str) -> None:
        self._clock = max(self._clock, self._priority(digest))
        self._counts.remove(digest)
        del self._worth[digest]

    def victim(self, may_go: Callable[[str], bool]) -> str | None:
        return min(filter(may_go, self._counts), key=self._priority, default=None)

    def digests(self) -> Set[str]:
        return self._counts.digests()

    def _priority(self, digest: str) -> float:
        worth = self._worth[digest]
        return worth.clock + self._counts[digest] * worth.per_use


_POLICIES: dict[EvictionName, Callable[[], EvictionPolicy]] = {"lru": Lru, "lfu": Lfu, "cost": Cost}


def policy_named(name: EvictionName) -> EvictionPolicy:
    """A fresh policy for one tier."""
    return _POLICIES[name]()
