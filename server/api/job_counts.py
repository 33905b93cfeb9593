"""How many jobs there are, found out without a scrape waiting long for the catalog.

Here: JobCounts. Not here: what is counted (training/jobs.py), the metric (server/metrics.py).
"""

import logging
from collections.abc import Callable, Mapping

from server.api.latest_answer import EVERY_S, PATIENCE_S, LatestAnswer

logger = logging.getLogger(__name__)

Counts = Mapping[str, int] | None


class JobCounts(LatestAnswer[Counts]):
    """The latest answer of the catalog."""

    def __init__(
        self,
        ask: Callable[[], Mapping[str, int]],
        *,
        every_s: float = EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`ask` blocks."""

        def counts() -> Counts:
            try:
                return ask()
            except Exception as error:  # a scrape tells the rest all the same
                logger.warning("jobs could not be counted: %s", error)
                return None

        super().__init__(counts, None, every_s=every_s, patience_s=patience_s)

    async def latest(self) -> Counts:
        """Jobs by status; None where the catalog did not answer, for it may be wrong by far."""
        return self.answer if await self.refresh() else None
