"""What a contestant is asked and what it answers: plain data, as JSON between processes.

Only the standard library, for it also runs in the environments of peers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.workload import ADAPTERS, Scenario, Traffic, Workload, read

ROOT = Path(__file__).parent.parent.parent
Who = Literal["adapterd", "peft", "peft-merged", "vllm", "llamacpp", "openvino"]
Dtype = Literal["bfloat16", "float32"]


class ContestantFailed(Exception):
    """A contestant's process ended without a measurement; says what it wrote last."""


@dataclass(frozen=True, slots=True)
class Job:
    """Generate `new_tokens` for each of the workload's prompts, all submitted at once."""

    who: Who
    traffic: Traffic  # base: no adapter; mixed: each sequence its own; the others in workload.py
    work: str  # folder of the workload's files
    dtype: Dtype
    prompt_tokens: int
    new_tokens: int
    threads: int
    sequences: int = 16
    adapters: int = ADAPTERS
    device: str = "cpu"  # or "cuda", which adapterd and peft know

    @property
    def scenario(self) -> Scenario:
        return Scenario(self.traffic, self.sequences, self.adapters, self.prompt_tokens)

    def workload(self) -> Workload:
        """Its files are already there."""
        return read(Path(self.work), self.scenario)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds from submission: to the last sequence's first token, and to the very last token.

    A contestant that runs one sequence after another gives the sum of their prefills, and a step is
    then one token of every sequence.
    """

    tokens: tuple[tuple[int, ...], ...]  # generated, by sequence
    prefill_s: float
    total_s: float
    decode_steps: int  # forward passes after prefill_s

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.tokens)) / self.total_s

    @property
    def decode_ms_per_step(self) -> float:
        return 1e3 * (self.total_s - self.prefill_s) / self.decode_steps


def in_own_process(
    job: Job,
    *,
    python: Path = Path(sys.executable),
    variables: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Measurement:
    """Runs the job in a fresh interpreter and waits. Raises ContestantFailed."""
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    try:
        done = subprocess.run(
            [str(python), "-m", "benchmarks.contestants"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | threads | dict(variables or {}),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ContestantFailed(f"{job.who}, {job.traffic}: no answer in {timeout_s} s") from error
    if done.returncode != 0:
        raise ContestantFailed(f"{job.who}, {job.traffic}: {done.stderr[-2000:]}")
    fields = json.loads(done.stdout.splitlines()[-1])
    return Measurement(**fields | {"tokens": tuple(map(tuple, fields["tokens"]))})
