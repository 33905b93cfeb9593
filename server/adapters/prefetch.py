"""Adapters that are made resident though no request waits for them: prefetches, and pins.

The engine's thread calls everything here. Not here: who may ask, names, HTTP.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from adapters_store.errors import AdapterdError, Conflict, Unavailable
from server.adapters.residency import Residency

Level = Literal["slot", "host"]


@dataclass(frozen=True, slots=True)
class _Wish:
    """An adapter on its way, and who is told when it is there."""

    request_id: str
    digest: str
    level: Level
    pins: bool = False
    ttl_s: float | None = None  # of the pin, from when it is there; None: until it is unpinned


@dataclass(frozen=True, slots=True)
class Answer:
    """A prefetch or pin is done; or, with an error, will not be."""

    request_id: str
    error: AdapterdError | None = None


class Prefetcher:
    """Brings adapters nearer for later, and keeps pinned ones where they are.

    Must stay true: every prefetch and pin is answered once; of all slots at least one is neither
    pinned nor about to be, so that others have a way in.
    """

    def __init__(
        self, residency: Residency, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds, from any start."""
        self._residency = residency
        self._clock = clock
        self._wishes: list[_Wish] = []
        self._ends: dict[str, float | None] = {}  # digest pinned → when, on the clock

    @property
    def awaited(self) -> frozenset[str]:
        """Digests that are on their way."""
        return frozenset(wish.digest for wish in self._wishes)

    @property
    def has_work(self) -> bool:
        """Whether `settle` has something to do, now or soon."""
        return bool(self._wishes) or self.idle_s() == 0.0

    def idle_s(self) -> float | None:
        """Seconds until a pin ends by itself, 0 if it is over; None if none will."""
        ends = [end for end in self._ends.values() if end is not None]
        return max(0.0, min(ends) - self._clock()) if ends else None

    def prefetch(self, request_id: str, digest: str, level: Level) -> None:
        """Starts to bring `digest` to this tier, or a nearer one."""
        self._begin(_Wish(request_id, digest, level))

    def pin(self, request_id: str, digest: str, ttl_s: float | None = None) -> None:
        """Starts to bring `digest` to a slot, to stay there; a later pin's `ttl_s` replaces it.

        Raises Conflict if no slot would be left for others.
        """
        self._expire()
        slots = self._residency.slots.capacity
        pinned = self._ends.keys() | {wish.digest for wish in self._wishes if wish.pins}
        if digest not in pinned and len(pinned) >= slots - 1:
            have = "there is 1 slot" if slots == 1 else f"there are {slots} slots"
            raise Conflict(
                f"{have}, {len(pinned)} of them pinned, and one stays free for other adapters; "
                "unpin one, or start the server with a higher --max-resident-adapters"
            )
        self._begin(_Wish(request_id, digest, "slot", pins=True, ttl_s=ttl_s))

    def unpin(self, digest: str) -> None:
        """No error if it is not pinned. One that is on its way comes all the same, unpinned."""
        self._end(digest)
        self._wishes = [
            replace(wish, pins=False) if wish.digest == digest else wish for wish in self._wishes
        ]

    def fail_loads(self, failed: Mapping[str, AdapterdError]) -> list[Answer]:
        """Ends what waits for adapters that could not be read."""
        lost = [wish for wish in self._wishes if wish.digest in failed]
        self._wishes = [wish for wish in self._wishes if wish.digest not in failed]
        return [Answer(wish.request_id, failed[wish.digest]) for wish in lost]

    def settle(self) -> list[Answer]:
        """Ends pins whose time is over, fills slots if that is allowed now, and says what is done.

        Called when requests have had their choice of slots in this step.
        """
        self._expire()
        answers: list[Answer] = []
        waiting: list[_Wish] = []
        for wish in self._wishes:
            if not self._is_at_hand(wish):
                waiting.append(wish)
            elif wish.level == "host":
                answers.append(Answer(wish.request_id))
            elif self._residency.place(wish.digest):
                answers.append(Answer(wish.request_id, self._keep(wish) if wish.pins else None))
            else:
                answers.append(Answer(wish.request_id, self._no_slot()))
        self._wishes = waiting
        return answers

    def check(self) -> None:
        """Raises AssertionError on drift."""
        assert set(self._residency.slots.pinned) == self._ends.keys(), "pins drifted"
        assert len(self._ends) < self._residency.slots.capacity, "no slot is left for others"

    def _keep(self, wish: _Wish) -> Conflict | None:
        """Pins what is in its slot now, unless too few rows would be left for others."""
        slots = self._residency.slots
        if wish.digest not in self._ends:
            left = slots.rows - slots.rows_pinned - slots.rows_of(wish.digest)
            if left < slots.rows // slots.capacity:
                return Conflict(
                    f"pinned adapters would leave {left} of the {slots.rows} rows that slots have; "
                    "unpin one, or start the server with more --slot-bytes"
                )
        slots.pin(wish.digest)
        self._ends[wish.digest] = None if wish.ttl_s is None else self._clock() + wish.ttl_s
        return None

    def _begin(self, wish: _Wish) -> None:
        self._wishes.append(wish)
        self._residency.fetch(wish.digest)

    def _is_at_hand(self, wish: _Wish) -> bool:
        """Whether it is where it is wanted, or needs nothing but a slot that may be filled now."""
        if wish.level == "host":
            return self._residency.fetch(wish.digest)
        return self._residency.prepare(wish.digest)

    def _no_slot(self) -> Unavailable:
        return Unavailable(
            f"all {self._residency.slots.capacity} slots are pinned or in use by running requests; "
            "try again when one of those has ended"
        )

    def _expire(self) -> None:
        now = self._clock()
        for digest in [one for one, end in self._ends.items() if end is not None and end <= now]:
            self._end(digest)

    def _end(self, digest: str) -> None:
        self._ends.pop(digest, None)
        self._residency.slots.unpin(digest)
