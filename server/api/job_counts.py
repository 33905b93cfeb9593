"""How many jobs there are, found out without a scrape waiting long for the catalog.

Here: JobCounts. Not here: what is counted (training/jobs.py), the metric (server/metrics.py).
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

EVERY_S = 5.0  # between two questions
PATIENCE_S = 0.8  # for an answer

logger = logging.getLogger(__name__)


class JobCounts:
    """The latest answer of the catalog, asked anew when that is old.

    True throughout: at most one question is under way, in a thread of its own, however many
    scrapes there are and however long it hangs. For one event loop.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[str, int]],
        *,
        every_s: float = EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`ask` blocks."""
        self._ask = ask
        self._every_s = every_s
        self._patience_s = patience_s
        self._question: asyncio.Task[None] | None = None
        self._answered_s = -math.inf
        self._counts: Mapping[str, int] | None = None

    async def latest(self) -> Mapping[str, int] | None:
        """Jobs by status; None where the catalog did not answer, for it may be wrong by far."""
        if time.monotonic() - self._answered_s >= self._every_s:
            self._question = self._question or asyncio.create_task(self._asked())
            done, _ = await asyncio.wait({self._question}, timeout=self._patience_s)
            if not done:
                return None
        return self._counts

    async def _asked(self) -> None:
        try:
            self._counts = await asyncio.to_thread(self._ask)
        except Exception as error:  # a scrape tells the rest all the same
            logger.warning("jobs could not be counted: %s", error)
            self._counts = None
        self._answered_s = time.monotonic()
        self._question = None
