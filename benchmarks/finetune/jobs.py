"""Runs variants as jobs of our own queue, by `adapterd worker` processes.

Here: run_all. Not here: what is run (variants.py), what is made of it (command.py).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from adapters_store.store import AdapterStore
from benchmarks.finetune.data import Task
from benchmarks.finetune.variants import Variant
from training.jobs import ENDED, JobBook, JobRecord

BASE = "adapterd-demo"


@dataclass(frozen=True, slots=True)
class Budget:
    """The same for every variant."""

    epochs: int
    batch_size: int
    answered: int  # of the test set
    workers: int
    threads: int  # of each


def run_all(
    task: Task, variants: Sequence[Variant], budget: Budget, folder: Path
) -> dict[str, JobRecord]:
    """Jobs by variant's name, all ended; those that an earlier call has ended are not run again."""
    store = AdapterStore(folder, base_name=BASE)
    try:
        book = JobBook(store.database, base=BASE)
        known = _named(book, budget)
        wanted = [one for one in variants if one.name not in known]
        if wanted:
            files = [
                store.files.add(BytesIO(content), filename=f"{part}.jsonl", purpose="fine-tune").id
                for part, content in (("train", task.train), ("test", task.test))
            ]
            for variant in wanted:
                book.create(_spec(variant, budget, *files))
        _work(folder, budget)
        ended = _named(book, budget)
        return {one.name: ended[one.name] for one in variants}
    finally:
        store.close()


def result_file(folder: Path, job: JobRecord, ending: str) -> bytes:
    """One of the job's result files, by how its name ends."""
    store = AdapterStore(folder, base_name=BASE)
    try:
        for file_id in (job.result or {}).get("result_files", ()):
            record, content = store.files.open(file_id)
            with content:
                if record.filename.endswith(ending):
                    return content.read()
        raise LookupError(f"{job.id} has no file that ends in {ending}: {job.error}")
    finally:
        store.close()


def _named(book: JobBook, budget: Budget) -> dict[str, JobRecord]:
    """This benchmark's jobs, by variant; another budget's are others."""
    jobs, more = book.list(limit=1000)
    assert not more
    return {
        job.spec["metadata"]["variant"]: job
        for job in jobs
        if job.spec["metadata"]["budget"] == _told(budget)
    }


def _told(budget: Budget) -> str:
    return f"{budget.epochs} epochs, batches of {budget.batch_size}, {budget.answered} answered"


def _spec(variant: Variant, budget: Budget, train: str, test: str) -> Mapping[str, Any]:
    return {
        "model": BASE,
        "training_file": train,
        "validation_file": test,
        "seed": 0,
        "metadata": {"variant": variant.name, "budget": _told(budget)},
        "method": {
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": budget.epochs,
                    "batch_size": budget.batch_size,
                    "learning_rate_multiplier": variant.rate,
                }
            },
        },
        "adapterd": {
            "name": "unpublished",
            "publish": False,
            "peft": dict(variant.peft),
            "evals": 0,
            "eval_examples": budget.answered,
        },
    }


def _work(folder: Path, budget: Budget) -> None:
    adapterd = "from server.cli import main; main()"
    told = [
        "worker",
        "--data-dir",
        str(folder),
        "--threads",
        str(budget.threads),
        "--nice",
        "0",
        "--until-empty",
    ]
    command = [sys.executable, "-c", adapterd, *told]
    environment = os.environ | {"OMP_NUM_THREADS": str(budget.threads)}
    workers = [subprocess.Popen(command, env=environment) for _ in range(budget.workers)]
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(1)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


def failures(jobs: Iterable[JobRecord]) -> list[str]:
    """What went wrong, a line a job."""
    return [f"{job.id}: {job.error}" for job in jobs if job.status in ENDED and job.error]
