"""What a contestant is asked and what it answers: plain data, as JSON between processes."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Literal

Who = Literal["adapterd", "peft"]
Traffic = Literal["base", "mixed"]


class ContestantFailed(Exception):
    """A contestant's process ended without a measurement; says what it wrote last."""


@dataclass(frozen=True, slots=True)
class Job:
    """Generate `new_tokens` for each of the workload's prompts, all submitted at once."""

    who: Who
    traffic: Traffic  # base: no adapter; mixed: each sequence its own
    work: str  # folder of the workload's files
    dtype: Literal["bfloat16", "float32"]
    prompt_tokens: int
    new_tokens: int
    threads: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds from submission: to the last sequence's first token, and to the very last token."""

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


def in_own_process(job: Job) -> Measurement:
    """Runs the job in a fresh interpreter and waits. Raises ContestantFailed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.contestants"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ContestantFailed(f"{job.who}, {job.traffic}: {done.stderr[-2000:]}")
    fields = json.loads(done.stdout.splitlines()[-1])
    return Measurement(**fields | {"tokens": tuple(map(tuple, fields["tokens"]))})
