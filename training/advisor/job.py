"""An advice as a job of the workers' queue: heard of, stopped, and its report kept.

Here: advise_job. Not here: the advice (advice.py), who may work on a job (jobs.py).

There are no checkpoints: an advice that is given back begins again.
"""

import threading

from adapters_store.store import AdapterStore
from training.advisor.advice import advice_files, advise
from training.advisor.campaign import MOST_PROBES
from training.advisor.request import AdviceRequest
from training.base import BaseFolder
from training.heartbeat import Heartbeat
from training.jobs import JobQueue, Lease, succeed
from training.results import ResultFiles
from training.watch import JobStopped


def advise_job(
    store: AdapterStore,
    base: BaseFolder,
    queue: JobQueue,
    lease: Lease,
    heart: Heartbeat,
    stop: threading.Event,
) -> None:
    """Ends the job well, with its report. Raises LeaseLost, JobStopped, and as `advise` does."""
    request = AdviceRequest.model_validate(lease.job.spec)
    _, content = store.files.open(request.training_file)
    most = MOST_PROBES * request.adapterd.probe_steps
    listener = _Listener(queue, lease, heart, stop, most)
    with content:
        report = advise(base, content, request.adapterd, seed=request.seed, listener=listener)
    listener.on_step()
    report |= {"job": lease.job.id, "training_file": request.training_file}
    with ResultFiles(store, lease.job) as kept:
        for ending, file in advice_files(report).items():
            kept.add(ending, file)
        with store.database.write() as connection:
            result = {"result_files": kept.ids, "report": report}
            succeed(connection, lease, result, report["summary"])


class _Listener:
    """An advice's ear for what is wished of its job."""

    def __init__(
        self, queue: JobQueue, lease: Lease, heart: Heartbeat, stop: threading.Event, most: int
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._heart = heart
        self._stop = stop
        self._most = most
        self._steps = 0

    def on_step(self) -> None:
        """Raises LeaseLost, JobStopped."""
        self._heart.check()
        if self._heart.wish or self._stop.is_set():
            raise JobStopped
        self._steps += 1
        self._heart.progress = {"step": self._steps, "steps": self._most}

    def note(self, message: str) -> None:
        """Raises LeaseLost."""
        self._queue.note(self._lease, message)
