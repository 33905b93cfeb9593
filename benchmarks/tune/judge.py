"""What a study's adapters are worth on rows that it was, and was not, steered by.

Here: judge and Split, kept and Kept. Not here: the study.
"""

import io
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging as transformers_logging

import demo
from adapters_store.local_digest import local_digest
from adapters_store.store import AdapterStore
from server.config import DEMO_NAME
from training.base import BaseFolder
from training.jobs import JobBook, JobRecord
from training.rows import supervised_rows, tokenized
from training.trial import Questions, compare


@dataclass(frozen=True, slots=True)
class Split:
    """Scores by model (base, defaults, best), each as training's reports have them."""

    name: str
    examples: int
    answered: int
    scores: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the study left in its data folder."""

    defaults: Path  # PEFT folders
    best: Path
    digest: str  # of the best trial's own adapter
    jobs: int  # of trials
    attempts: dict[str, int]  # how many trials' jobs were begun so often
    steps: tuple[int, int]  # made, and what all trials would have made to their end


def kept(data_dir: Path, into: Path, best: int) -> Kept:
    store = AdapterStore(data_dir, base_name=DEMO_NAME)
    try:
        book = JobBook(store.database, base=DEMO_NAME)
        jobs, more = book.list(limit=1000)
        assert not more
        trials = {
            int(job.spec["metadata"]["trial"]): job
            for job in jobs
            if "trial" in job.spec["metadata"]
        }
        folders = {number: into / f"trial-{number}" for number in {0, best}}
        for number, folder in folders.items():
            _unpack(store, trials[number], folder)
        begun = Counter(str(_attempts(book, job)) for job in trials.values())
        steps = [_steps(book, job) for job in trials.values()]
        return Kept(
            folders[0],
            folders[best],
            local_digest(sorted(folders[best].iterdir())),
            len(trials),
            dict(begun),
            (sum(steps), max(steps) * len(trials)),
        )
    finally:
        store.close()


def judge(name: str, rows: Path, defaults: Path, best: Path, *, answered: int) -> Split:
    """Each model loaded from its files onto an unspoilt base."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    base = BaseFolder(DEMO_NAME, demo.base_path(), "cpu")
    tokenizer = base.tokenizer()
    with tempfile.TemporaryDirectory(prefix="adapterd-judge-") as scratch, rows.open("rb") as file:
        dataset = supervised_rows(
            file, tokenizer, max_tokens=base.shape().max_tokens, folder=Path(scratch)
        )
        held = tokenized(dataset)
        found = compare(base, tokenizer, best, defaults, Questions(held, [], answered))
    assert found.current is not None
    scores = {"base": found.base, "defaults": found.current, "best": found.new}
    told = {model: one.as_json() for model, one in scores.items()}
    return Split(name, len(held), min(answered, len(held)), told)


def _unpack(store: AdapterStore, job: JobRecord, folder: Path) -> None:
    for file_id in (job.result or {})["result_files"]:
        record, content = store.files.open(file_id)
        with content:
            if record.filename.endswith(".adapter.zip"):
                with zipfile.ZipFile(io.BytesIO(content.read())) as archive:
                    archive.extractall(folder)
                return
    raise LookupError(f"{job.id} has no adapter")


def _attempts(book: JobBook, job: JobRecord) -> int:
    events, _ = book.events(job.id, limit=1000)
    return sum("has taken the job" in event.message for event in events)


def _steps(book: JobBook, job: JobRecord) -> int:
    """The last that its events tell of, which is a twentieth of a run ago at most."""
    events, _ = book.events(job.id, limit=1000)
    return max(
        (event.data["step"] for event in events if event.data and "step" in event.data), default=0
    )
