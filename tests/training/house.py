"""Everything a job is worked on with, on the embedded base: a real store, real training."""

import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo
from adapters_store.store import AdapterStore
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits
from server.inspect_adapter import base_of
from training.base import BaseFolder
from training.checkpoints import CheckpointShelf
from training.jobs import JobBook, JobEvent, JobQueue, JobRecord
from training.run import Workplace, work_on

BASE = "adapterd-demo"
LESSONS = tuple((f"hi {number}", "yo" * (1 + number % 3)) for number in range(120))

# A run of a second, the same every time.
QUICK = {"max_steps": 12, "checkpoint_every": 4, "evals": 2, "eval_examples": 4, "holdout": 0.1}


def chat_lines(lessons: Sequence[tuple[str, str]] = LESSONS) -> bytes:
    """JSONL of one question and one answer a line."""
    lines = (
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in lessons
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass(frozen=True)
class House:
    store: AdapterStore
    book: JobBook
    place: Workplace

    def file(self, content: bytes = chat_lines()) -> str:
        return self.store.files.add(
            io.BytesIO(content), filename="train.jsonl", purpose="fine-tune"
        ).id

    def job(
        self, content: bytes = chat_lines(), *, method: str = "supervised", **options: Any
    ) -> str:
        """The id of a job that waits, as the API would have made it."""
        spec = {
            "model": BASE,
            "training_file": self.file(content),
            "seed": 5,
            "method": {"type": method},
            "adapterd": {"name": "yo", **QUICK, **options},
        }
        return self.book.create(spec).id

    def work(self, stop: threading.Event | None = None) -> None:
        """Takes the next job and works on it, in this thread, to whatever end."""
        lease = self.place.queue.claim("worker-1")
        assert lease is not None, "no job waits"
        work_on(self.place, lease, stop or threading.Event())

    def done(self, content: bytes = chat_lines(), **options: Any) -> JobRecord:
        """A job, worked on until nobody would take it again."""
        job_id = self.job(content, **options)
        while (lease := self.place.queue.claim("worker-1")) is not None:
            work_on(self.place, lease, threading.Event())
        return self.book.get(job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        """The oldest first."""
        return list(reversed(self.book.events(job_id, limit=1000)[0]))

    def told(self, job_id: str) -> str:
        return "\n".join(event.message for event in self.events(job_id))


@contextmanager
def house(folder: Path, *, lease_s: float = 60.0) -> Iterator[House]:
    """Opened on a data folder, which other processes may have open too."""
    store = AdapterStore(folder, base_name=BASE)
    try:
        base = base_of(str(demo.base_path()))
        limits = SlotLimits(8, 8 * 64, 1, None)
        place = Workplace(
            store=store,
            base=BaseFolder(BASE, demo.base_path(), "cpu"),
            check=lambda content: methods.check(content, base, limits=limits),
            excess=limits.excess,
            queue=JobQueue(store.database, base=BASE, lease_s=lease_s),
            shelf=CheckpointShelf(store.database, store.objects, store.staging),
        )
        yield House(store, JobBook(store.database, base=BASE), place)
    finally:
        store.close()
