"""One measurement: a Job as JSON on stdin, a Measurement as the only line of stdout.

Whatever else a contestant's libraries print goes to stderr.
"""

import json
import os
import sys
from dataclasses import asdict

from benchmarks.contestants.job import Job, Measurement


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)
    measurement = _measure(Job(**json.load(sys.stdin)))
    with os.fdopen(answer, "w") as stream:
        print(json.dumps(asdict(measurement)), file=stream)


def _measure(job: Job) -> Measurement:
    """Each contestant is imported only where it runs: peers are not installed here."""
    match job.who:
        case "adapterd":
            from benchmarks.contestants.adapterd import measure
        case "peft":
            from benchmarks.contestants.peft import measure
        case "peft-merged":
            from benchmarks.contestants.peft import measure_merged as measure
        case "vllm":
            from benchmarks.contestants.vllm import measure
        case "llamacpp":
            from benchmarks.contestants.llamacpp import measure
        case "openvino":
            from benchmarks.contestants.openvino import measure
    return measure(job)


if __name__ == "__main__":
    main()
