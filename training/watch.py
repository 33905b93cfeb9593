"""What a job's worker hears of its run, and does about it: events, checkpoints, stopping.

Here: JobWatch, JobStopped. Not here: the run (loop.py), leases (jobs.py).
"""

import threading
import time
from pathlib import Path
from typing import Any

from training.checkpoints import CheckpointShelf
from training.heartbeat import Heartbeat
from training.jobs import JobQueue, Lease
from training.loop import Progress

EVENTS = 20
"""Of a run's progress, about."""


class JobStopped(Exception):
    """The run ended before its end, because that was wished; its last checkpoint is kept."""


class JobWatch:
    """A loop.Watch for a job under a lease."""

    def __init__(
        self,
        queue: JobQueue,
        shelf: CheckpointShelf,
        lease: Lease,
        heart: Heartbeat,
        stop: threading.Event,
        *,
        steps: int,
    ) -> None:
        self._queue = queue
        self._shelf = shelf
        self._lease = lease
        self._heart = heart
        self._stop = stop
        self._every = max(1, steps // EVENTS)
        self._began: tuple[float, Progress] | None = None

    def on_step(self, progress: Progress) -> bool:
        """Raises LeaseLost, JobStopped."""
        self._heart.check()
        self.check_cancelled()
        self._heart.progress = self._told(progress)
        if progress.step % self._every == 0 and progress.loss is not None:
            metrics = {"step": progress.step, "train_loss": round(progress.loss, 5)}
            self._queue.note(
                self._lease,
                f"Step {progress.step}/{progress.steps}: training loss {progress.loss:.4f}",
                data=metrics,
            )
        return self._leaving()

    def on_eval(self, step: int, loss: float) -> None:
        """Raises LeaseLost."""
        self._queue.note(
            self._lease,
            f"Step {step}: held-out loss {loss:.4f}",
            data={"step": step, "valid_loss": round(loss, 5)},
        )

    def on_checkpoint(self, folder: Path, step: int, metrics: dict[str, Any]) -> None:
        """Raises LeaseLost; JobStopped if it was asked for to stop."""
        self._shelf.save(self._lease, folder, step=step, metrics=metrics)
        if self._leaving():
            raise JobStopped

    def check_cancelled(self) -> None:
        """Raises JobStopped if it is wished that nothing comes of the job."""
        if self._heart.wish == "cancel":
            raise JobStopped

    def _leaving(self) -> bool:
        return self._heart.wish == "pause" or self._stop.is_set()

    def _told(self, progress: Progress) -> dict[str, Any]:
        """As clients see it; speeds are this worker's."""
        now = time.time()
        told: dict[str, Any] = {
            "step": progress.step,
            "steps": progress.steps,
            "epoch": progress.epoch,
            "loss": progress.loss,
            "tokens": progress.tokens,
        }
        if self._began is None:
            self._began = (now, progress)
            return told
        began, first = self._began
        seconds, steps = max(now - began, 1e-6), progress.step - first.step
        if steps:
            told["tokens_per_second"] = round((progress.tokens - first.tokens) / seconds, 1)
            left = (progress.steps - progress.step) * seconds / steps
            told["estimated_finish"] = round(now + left)
        return told
