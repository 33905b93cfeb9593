"""BLEU of a job's adapter on E2E NLG's test set: its files are opened and asked, greedily.

Here: bleu. Not here: training, the metric (e2e_nlg/bleu.py).
"""

import io
import tempfile
import zipfile
from pathlib import Path

import demo
from benchmarks.e2e_nlg.bleu import score
from benchmarks.finetune.data import Task
from benchmarks.finetune.jobs import BASE, result_file
from training.base import BaseFolder, load_model
from training.evaluation import View, answers
from training.jobs import JobRecord
from training.rows import supervised_rows, tokenized
from training.trial import opened


def bleu(task: Task, folder: Path, job: JobRecord | None) -> float:
    """0 to 100; without a job the base's."""
    base = BaseFolder(BASE, demo.base_path(), "cpu")
    tokenizer = base.tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        rows = supervised_rows(
            io.BytesIO(task.test), tokenizer, max_tokens=1024, folder=Path(scratch, "rows")
        )
        if job is None:
            view = View(load_model(base))
        else:
            files = Path(scratch, "adapter")
            with zipfile.ZipFile(io.BytesIO(result_file(folder, job, "adapter.zip"))) as packed:
                packed.extractall(files)
            view, _ = opened(base, files)
        said = answers(view, tokenizer, tokenized(rows), more_tokens=32)
    return score(said, task.facts).bleu
