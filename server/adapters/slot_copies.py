"""How an adapter's tensors get from host memory into a slot, beside the steps that are running.

On CUDA: on a stream of its own, from pinned memory, so that neither the host nor a step waits for
a copy that it has no use for. On a CPU a copy is done when it returns. Never run on a GPU yet.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SlotCopies:
    """Copies that are done when they return."""

    @contextmanager
    def into(self, slot: int, source: object) -> Iterator[None]:
        """Copies made within fill `slot` from memory that `source` owns."""
        yield

    def await_slots(self, slots: frozenset[int]) -> None:
        """What is enqueued from now on sees these slots filled. The host does not wait."""


class StreamCopies(SlotCopies):
    """Copies on a side stream.

    Must stay true: a slot is written only after the steps that were enqueued before, and read only
    by steps that wait for its last copy's event on the device; copies into rows that change hands
    follow one another, being on one stream; what is copied from is kept alive until its event has
    come, so that pinned memory is not used again too soon.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._arrivals: dict[int, torch.cuda.Event] = {}  # of slots that no step has waited for
        self._sources: deque[tuple[torch.cuda.Event, object]] = deque()  # in order of their events

    @contextmanager
    def into(self, slot: int, source: object) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        event = torch.cuda.Event()
        event.record(self._stream)
        self._arrivals[slot] = event
        self._sources.append((event, source))

    def await_slots(self, slots: frozenset[int]) -> None:
        for slot in slots & self._arrivals.keys():
            torch.cuda.current_stream(self._device).wait_event(self._arrivals.pop(slot))
        while self._sources and self._sources[0][0].query():
            self._sources.popleft()


def slot_copies(device: torch.device) -> SlotCopies:
    """The form for this device."""
    return StreamCopies(device) if device.type == "cuda" else SlotCopies()
