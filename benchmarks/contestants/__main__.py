"""One measurement: a Job as JSON on stdin, a Measurement as the last line of stdout."""

import json
import sys
from dataclasses import asdict

import torch

from benchmarks.contestants.job import Job


def main() -> None:
    job = Job(**json.load(sys.stdin))
    torch.set_num_threads(job.threads)
    if job.who == "adapterd":
        from benchmarks.contestants.adapterd import measure
    else:
        from benchmarks.contestants.peft import measure
    print(json.dumps(asdict(measure(job))))


if __name__ == "__main__":
    main()
