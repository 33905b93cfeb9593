"""Workers to be killed and stopped: `python -m tests.training.worker_driver DATA_DIR LEASE_S`.

Each line on stdin forks a worker (imports are paid once) that works until no job waits; its process
id is printed. What a worker logs goes to stderr. Ends with its stdin, and its workers with it.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from tests.training.house import house
from training.worker import work


def child(folder: Path, lease_s: float) -> None:
    """A worker's whole life."""
    torch.set_num_threads(1)
    with house(folder, lease_s=lease_s) as home:
        stop = threading.Event()
        while home.book.list(limit=1, wanted=lambda job: job.status in ("queued", "running"))[0]:
            work(home.place, name=f"w{os.getpid()}", stop=stop, until_empty=True)
            stop.wait(0.05)  # a lost worker's job is free once its lease has ended


def main(folder: Path, lease_s: float) -> None:
    logging.basicConfig(level="WARNING")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none is waited for
    for _ in sys.stdin:
        worker = os.fork()
        if not worker:
            try:
                child(folder, lease_s)
            finally:
                os._exit(0)
        print(worker, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
