"""The worker's life: takes one job after another until it is told to stop.

Here: work. Not here: a job (run.py), processes and signals.
"""

import logging
import threading

from adapters_store.errors import AdapterdError
from training.run import Workplace, work_on

POLL_S = 1.0  # between two looks at an empty queue
AWAY_S = 5.0  # after the database did not answer

logger = logging.getLogger(__name__)


def work(place: Workplace, *, name: str, stop: threading.Event, until_empty: bool = False) -> None:
    """Works until `stop` is set; a job under way is then given back with a checkpoint.

    `until_empty`: or until no job waits. `name` is told with the job's events.
    """
    while not stop.is_set():
        try:
            lease = place.queue.claim(name)
            if lease is not None:
                logger.info("%s: begun", lease.job.id)
                work_on(place, lease, stop)
                logger.info("%s: left", lease.job.id)
        except AdapterdError as away:
            logger.warning("the queue cannot be reached: %s", away.message)
            stop.wait(AWAY_S)
            continue
        if lease is None:
            if until_empty:
                return
            stop.wait(POLL_S)
