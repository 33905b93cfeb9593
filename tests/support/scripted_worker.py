"""A worker that takes jobs from a real queue as any does, and makes up what comes of them."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from adapters_store.database import Database
from training.jobs import JobQueue, Lease, LeaseLost, succeed

Loss = Callable[[Mapping[str, Any]], float | None]  # of a job's spec
BASE_SCORES = {"eval_loss": 9.0}


class ScriptedWorker(threading.Thread):
    """Ends with the `with`. `claims` counts how often each job was begun.

    `looks`: of the tuner at each job; after an evaluation two more are waited for, so that what the
    tuner makes of it is known before the next one.
    """

    def __init__(
        self,
        database: Database,
        *,
        base: str,
        loss: Loss,
        evals: int = 4,
        eval_s: float = 0.05,
        looks: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(name="scripted worker")
        self.claims: Counter[str] = Counter()
        self.heeded: list[str] = []  # jobs let go before their end
        self._queue = JobQueue(database, base=base)
        self._database = database
        self._loss = loss
        self._evals = evals
        self._eval_s = eval_s
        self._looks = looks
        self._over = threading.Event()

    def __enter__(self) -> "ScriptedWorker":
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.is_set():
            lease = self._queue.claim("scripted")
            if lease is None:
                time.sleep(0.01)
                continue
            self.claims[lease.job.id] += 1
            try:
                self._work(lease)
            except LeaseLost:
                self.heeded.append(lease.job.id)

    def _wait_for_looks(self, lease: Lease) -> None:
        if self._looks is None:
            return
        job_id = lease.job.id
        enough = self._looks[job_id] + 2
        while self._looks[job_id] < enough and not self._over.is_set():
            if self._queue.renew(lease):
                return
            time.sleep(0.02)

    def _work(self, lease: Lease) -> None:
        spec = lease.job.spec
        loss = self._loss(spec)
        if loss is None:
            return self._queue.fail(lease, "it cannot be trained", final=True)
        for number in range(1, self._evals + 1):
            time.sleep(self._eval_s)
            progress = {"step": number * 10, "steps": self._evals * 10, "loss": loss}
            if self._queue.renew(lease, progress) or self._over.is_set():
                self._queue.heed(lease)
                self.heeded.append(lease.job.id)
                return None
            data = {"step": number * 10, "valid_loss": loss + 1 / number}
            self._queue.note(lease, f"Step {number * 10}", data=data)
            self._wait_for_looks(lease)
        published = spec["adapterd"]["publish"]
        name = spec["adapterd"]["name"]
        report = {
            "job": lease.job.id,
            "adapter": {"name": name, "version": 1, "digest": "d" * 64} if published else None,
            "scores": {"base": BASE_SCORES, "current": None, "new": {"eval_loss": loss}},
            "gate": {"passed": True, "reasons": ["held: it is better"]} if published else None,
        }
        result = {"report": report, "fine_tuned_model": f"{name}@1" if published else None}
        with self._database.write() as connection:
            succeed(connection, lease, result, "Done.")
        return None


def smooth(spec: Mapping[str, Any]) -> float:
    """A loss with one valley: rank 32 at twice the default's rate."""
    peft = spec["adapterd"].get("peft", {})
    method = spec.get("method", {}).get("supervised", {})
    rate = method.get("hyperparameters", {}).get("learning_rate_multiplier", 1.0)
    rate = 1.0 if rate == "auto" else rate
    return 1.0 + abs(peft.get("rank", 16) - 32) / 64 + abs(rate - 2.0) / 4
