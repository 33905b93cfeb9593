"""`adapterd tune --local` with real workers on a tiny base, its tuner killed on the way."""

import io
import json
import subprocess
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from adapters_store.local_digest import local_digest
from adapters_store.store import AdapterStore
from tests.e2e.server_process import ADAPTERD, START_S, gone
from tests.e2e.tiny_base import make_tiny_base
from training.jobs import JobBook, JobRecord

TRIALS = 2


@pytest.mark.slow  # four processes import torch
def test_a_killed_study_leaves_no_worker_and_goes_on_to_publish(tmp_path: Path) -> None:
    base, data = make_tiny_base(tmp_path / "base"), tmp_path / "train.jsonl"
    lines = ({"prompt": f"{n} plus one is ", "completion": str(n + 1)} for n in range(40))
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        *ADAPTERD, "tune", str(data), "--name", "sql", "--trials", str(TRIALS), "--epochs", "4",
        "--holdout", "0.2", "--batch-size", "4", "--local", "--nice", "0", "--model", str(base),
        "--data-dir", str(tmp_path / "data"), "--threads", "1",
    ]  # fmt: skip
    log = tmp_path / "out.txt"
    with log.open("w") as out:
        tuner = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            wait_for_work(tmp_path / "data", log)
            workers = tuner.children()
        finally:
            tuner.kill()
            tuner.wait()
    assert len(workers) == 1
    assert gone(workers, within_s=30), "a worker outlived its tuner"

    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["adapter"] == "sql"
    assert [one["number"] for one in told["trials"]] == list(range(TRIALS))
    assert {one["state"] for one in told["trials"]} <= {"complete", "pruned"}
    store = AdapterStore(tmp_path / "data", base_name="base")
    jobs = {job.spec["metadata"].get("trial"): job for job in jobs_of(store)}
    assert set(jobs) == {"0", "1", None}
    best = jobs[str(told["best"]["number"])]
    assert unpacked_digest(store, best, tmp_path / "best") == told["version"]["digest"]
    assert store.get("sql").current.digest == told["version"]["digest"]
    store.close()


def wait_for_work(data_dir: Path, log: Path) -> None:
    """Until a trial's job has a worker."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (data_dir / "tuning.sqlite3").exists() and "trial 0 running" in log.read_text():
            store = AdapterStore(data_dir, base_name="base")
            begun = any(job.status == "running" for job in jobs_of(store))
            store.close()
            if begun:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def jobs_of(store: AdapterStore) -> tuple[JobRecord, ...]:
    return JobBook(store.database, base="base").list(limit=100)[0]


def unpacked_digest(store: AdapterStore, job: JobRecord, folder: Path) -> str:
    for file_id in (job.result or {})["result_files"]:
        record, content = store.files.open(file_id)
        with content:
            if record.filename.endswith(".adapter.zip"):
                with zipfile.ZipFile(io.BytesIO(content.read())) as archive:
                    archive.extractall(folder)
    return local_digest(sorted(folder.iterdir()))
