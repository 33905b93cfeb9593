"""The order of copies and steps on CUDA, by fakes of its streams that write down what they do."""

import weakref
from contextlib import contextmanager

import pytest
import torch

from server.adapters.slot_copies import SlotCopies, StreamCopies, slot_copies

DEVICE = torch.device("cuda")


class Recorder:
    """Stands in for torch.cuda: a log of what was enqueued where."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.arrived = False
        recorder = self

        class Stream:
            def __init__(self, device: torch.device | None = None, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                recorder.log.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event: "Event") -> None:
                recorder.log.append(f"{self.name} waits for copy {event.number}")

        class Event:
            count = 0

            def record(self, stream: Stream) -> None:
                Event.count += 1
                self.number = Event.count
                recorder.log.append(f"copy {self.number} ends on {stream.name}")

            def query(self) -> bool:
                return recorder.arrived

        self.Stream, self.Event, self._main = Stream, Event, Stream(name="main")

    def current_stream(self, device: torch.device) -> object:
        return self._main

    @contextmanager
    def stream(self, stream: object):
        self.log.append("to side")
        yield
        self.log.append("back")


class Source:
    """Host memory of an adapter."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for name in ("Stream", "Event", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorder, name))
    return recorder


def test_a_step_waits_for_the_slots_that_it_uses_and_once(cuda: Recorder) -> None:
    copies = StreamCopies(DEVICE)
    with copies.into(3, Source()):
        cuda.log.append("copies into 3")
    with copies.into(4, Source()):
        cuda.log.append("copies into 4")
    assert cuda.log == [
        "side waits for main", "to side", "copies into 3", "back", "copy 1 ends on side",
        "side waits for main", "to side", "copies into 4", "back", "copy 2 ends on side",
    ]  # fmt: skip
    cuda.log.clear()
    copies.await_slots(frozenset({1, 4}))
    copies.await_slots(frozenset({1, 4}))
    assert cuda.log == ["main waits for copy 2"]
    copies.await_slots(frozenset({3}))
    assert cuda.log[1:] == ["main waits for copy 1"]


def test_a_source_lives_until_its_copy_has_come(cuda: Recorder) -> None:
    copies, source = StreamCopies(DEVICE), Source()
    alive = weakref.ref(source)
    with copies.into(0, source):
        pass
    with copies.into(0, None):  # the slot is given away at once
        pass
    del source
    copies.await_slots(frozenset({0}))
    assert alive() is not None
    cuda.arrived = True
    copies.await_slots(frozenset())
    assert alive() is None


def test_a_cpu_has_nothing_to_wait_for() -> None:
    copies = slot_copies(torch.device("cpu"))
    assert type(copies) is SlotCopies
    with copies.into(0, None):
        pass
    copies.await_slots(frozenset({0}))
