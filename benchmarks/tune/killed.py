"""Runs `adapterd tune` to its end, killing it and its workers on the way.

Here: Data, run_study, Ran. Not here: what the adapters are worth (judge.py), the report.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.finetune.data import banking77

ROOT = Path(__file__).parents[2]
BEGUN = re.compile(r"trial (\d+) running")
NAME = "banking77"


@dataclass(frozen=True, slots=True)
class Data:
    """JSONL files; the first two are disjoint parts of banking77's training split."""

    train: Path
    validation: Path
    test: Path


@dataclass(frozen=True, slots=True)
class Ran:
    """How a study went."""

    told: dict[str, Any]  # what `adapterd tune --json` says at its end
    seconds: float  # of all runs together
    kills: tuple[int, ...]  # trials begun when it was killed


def prepare(folder: Path, *, examples: int, held_out: int, seed: int) -> Data:
    """Raises DataMissing."""
    folder.mkdir(parents=True, exist_ok=True)
    task = banking77()
    lines = task.train.splitlines(keepends=True)
    random.Random(seed).shuffle(lines)
    data = Data(*(folder / f"{part}.jsonl" for part in ("train", "validation", "test")))
    data.validation.write_bytes(b"".join(lines[:held_out]))
    data.train.write_bytes(b"".join(lines[held_out : held_out + examples]))
    data.test.write_bytes(task.test)
    return data


def run_study(data: Data, folder: Path, arguments: Sequence[str], kills: Sequence[int]) -> Ran:
    """`kills`: after so many trials have begun, kill -9; then the same command again."""
    command = [
        sys.executable, "-c", "from server.cli import main; main()", "tune", str(data.train),
        "--validation", str(data.validation), "--name", NAME, "--local", "--json",
        "--data-dir", str(folder), *arguments,
    ]  # fmt: skip
    began = time.monotonic()
    done: list[int] = []
    for limit in (*kills, None):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if _killed(process, limit):
            assert limit is not None
            done.append(limit)
            continue
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
        assert process.wait() == 0
        return Ran(told, time.monotonic() - began, tuple(done))
    raise AssertionError("the last run is not killed")


def _killed(process: subprocess.Popen[str], limit: int | None) -> bool:
    """Passes on what it says. Once trial `limit` is under way, ends it and its workers at once."""
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", flush=True)
        begun = BEGUN.search(line)
        if limit is None or begun is None or int(begun[1]) < limit:
            continue
        time.sleep(5)  # into the trial's training
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        for one in family:
            os.kill(one.pid, signal.SIGKILL)
        psutil.wait_procs(family[1:], timeout=10)
        process.wait()
        print(f"-- kill -9 of the tuner and {len(family) - 1} workers", flush=True)
        return True
    return False
