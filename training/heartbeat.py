"""Keeps a lease good while its job is worked on, and brings back what is wished of it.

Here: Heartbeat. Not here: what a lease is (jobs.py).
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any

from adapters_store.errors import AdapterdError
from training.jobs import JobQueue, Lease, LeaseLost, Wish

EVERY_S = 3.0
"""Clients see how far a job is, and workers what is wished, no later than this."""

logger = logging.getLogger(__name__)


class Heartbeat:
    """A thread that renews a lease, within a `with`. Others may set `progress` at any time."""

    def __init__(self, queue: JobQueue, lease: Lease) -> None:
        self.progress: Mapping[str, Any] | None = None
        self.wish: Wish = ""
        self._queue = queue
        self._lease = lease
        self._every_s = min(queue.lease_s / 3, EVERY_S)
        self._lost: LeaseLost | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raises LeaseLost once it is known that another worker has the job."""
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self.wish = self._queue.renew(self._lease, progress=self.progress)
            except LeaseLost as lost:
                self._lost = lost
                return
            except AdapterdError as away:  # the database may be back before the lease ends
                logger.warning("the lease on %s is not renewed: %s", self._lease.job.id, away)
