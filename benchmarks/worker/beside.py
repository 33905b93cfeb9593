"""A server's throughput with a worker that trains on the same machine, and without, in turns.

Here: measure. Not here: the worker alone (alone.py). The worker has its own defaults: niceness and
threads are what `adapterd worker` gives itself.
"""

import io
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters_store.store import AdapterStore
from benchmarks.fleet.traffic import Load, throughput
from benchmarks.own_server import base_name, own_server
from benchmarks.worker.alone import ADAPTERD, ROOT
from training.jobs import JobBook

STARTED_S = 300.0
MANY_STEPS = 1_000_000


def measure(
    base: Path, data: bytes, folder: Path, load: Load, *, repeats: int, threads: int
) -> list[tuple[float, float]]:
    """(tokens a second alone, beside a worker that trains), a pair a repeat."""
    pairs = []
    with own_server(base, "--threads", str(threads)) as server:
        name = base_name(server.url)
        throughput(server.url, load, lambda: name)  # warms up
        for _ in range(repeats):
            alone = throughput(server.url, load, lambda: name)
            with _training(base, data, folder):
                pairs.append((alone, throughput(server.url, load, lambda: name)))
    return pairs


@contextmanager
def _training(base: Path, data: bytes, folder: Path) -> Iterator[None]:
    """A worker in the middle of a job, from its first step on; ended afterwards."""
    store = AdapterStore(folder, base_name="base")
    try:
        book = JobBook(store.database, base="base")
        file = store.files.add(io.BytesIO(data), filename="data.jsonl", purpose="fine-tune")
        options = {"name": "beside", "publish": False, "max_steps": MANY_STEPS, "evals": 0}
        job = book.create(
            {"model": "base", "training_file": file.id, "seed": 1, "adapterd": options}
        )
        told = ("--model", str(base), "--served-model-name", "base", "--data-dir", str(folder))
        worker = subprocess.Popen(
            [*ADAPTERD, "worker", *told], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + STARTED_S
            while book.get(job.id).progress is None:
                assert worker.poll() is None, "the worker ended"
                assert time.monotonic() < deadline, "the worker does not get to its first step"
                time.sleep(0.2)
            yield
        finally:
            worker.kill()
            worker.wait()
            book.cancel(job.id)
    finally:
        store.close()
