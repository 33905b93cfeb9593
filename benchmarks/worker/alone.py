"""One job by a worker, and the same by hand: processes from start to end, in turns.

Here: measure, Pair. Not here: a server beside it (beside.py).
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import demo
from adapters_store.store import AdapterStore
from benchmarks.worker.by_hand import WARMUP
from training.jobs import JobBook

BASE = "adapterd-demo"
ROOT = Path(__file__).parents[2]
ADAPTERD = (sys.executable, "-c", "from server.cli import main; main()")
BATCH, RATE, SEED = 16, 2e-3, 3


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of each, and the largest difference of their losses at any step."""

    worker_s: float
    by_hand_s: float
    difference: float
    last_loss: float


def measure(data: bytes, *, steps: int, threads: int) -> Pair:
    """The worker keeps checkpoints and publishes; nothing is held out, as by hand."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data.jsonl").write_bytes(data)
        by_hand_s, wanted = _by_hand(folder, steps, threads)
        worker_s, found = _by_worker(folder / "kept", data, steps, threads)
    assert [step for step, _ in found] == [step for step, _ in wanted]
    pairs = zip(found, wanted, strict=True)
    difference = max(abs(a - b) for (_, a), (_, b) in pairs)
    return Pair(worker_s, by_hand_s, difference, found[-1][1])


def _by_hand(folder: Path, steps: int, threads: int) -> tuple[float, list[tuple[int, float]]]:
    told = (demo.base_path(), folder / "data.jsonl", folder, steps, BATCH, RATE, SEED, threads)
    command = [sys.executable, "-m", "benchmarks.worker.by_hand", *map(str, told)]
    seconds = _timed(command)
    return seconds, json.loads((folder / "losses.json").read_text())


def _by_worker(
    folder: Path, data: bytes, steps: int, threads: int
) -> tuple[float, list[tuple[int, float]]]:
    store = AdapterStore(folder, base_name=BASE)
    try:
        book = JobBook(store.database, base=BASE)
        file = store.files.add(io.BytesIO(data), filename="data.jsonl", purpose="fine-tune")
        options = {
            "name": "same",
            "learning_rate": RATE,
            "max_steps": steps,
            "warmup_ratio": WARMUP,
            "group_by_length": False,
            "holdout": 0.0,
            "peft": {"rank": 16, "alpha": 32.0},
        }
        hyper = {"batch_size": BATCH}
        method = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
        spec = {"model": BASE, "training_file": file.id, "seed": SEED, "method": method}
        job_id = book.create({**spec, "adapterd": options}).id
        told = ("--data-dir", str(folder), "--threads", str(threads), "--nice", "0")
        seconds = _timed([*ADAPTERD, "worker", "--until-empty", *told])
        job = book.get(job_id)
        assert job.status == "succeeded", job.error
        assert job.result is not None
        curve = job.result["report"]["curves"]["train"]
        return seconds, [(step, loss) for step, loss in curve]
    finally:
        store.close()


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        command, check=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - began
