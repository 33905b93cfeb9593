"""Whether what the server stands on answers, found out without making anybody wait long.

Here: Reachability. Not here: what is asked (AdapterStore.probe).
"""

import logging
from collections.abc import Callable

from adapters_store.errors import AdapterdError, Unavailable
from server.api.latest_answer import EVERY_S, PATIENCE_S, LatestAnswer

LOST_S = 15.0  # without an answer; one that is only late, behind a large upload, is no fault

logger = logging.getLogger(__name__)


class Reachability(LatestAnswer[str | None]):
    """What was wrong when the store was last asked; None: nothing."""

    def __init__(
        self,
        probe: Callable[[], None],
        *,
        every_s: float = EVERY_S,
        patience_s: float = PATIENCE_S,
        lost_s: float = LOST_S,
    ) -> None:
        """`probe` blocks; it raises an AdapterdError that says what does not answer."""
        super().__init__(self._fault, None, every_s=every_s, patience_s=patience_s)
        self._probe = probe
        self._lost_s = lost_s

    async def check(self) -> None:
        """Raises Unavailable, saying what does not answer."""
        age_s = self.age_s
        if not await self.refresh() and age_s >= self._lost_s:
            raise Unavailable("the store or its catalog does not answer")
        if self.answer is not None:
            raise Unavailable(self.answer)

    def _fault(self) -> str | None:
        try:
            self._probe()
            fault = None
        except AdapterdError as error:
            fault = error.message
        except Exception as error:  # whatever it is, requests would meet it too
            logger.exception("the store's probe failed")
            fault = f"the store cannot be asked: {type(error).__name__}"
        if fault != self.answer:
            logger.warning("ready again" if fault is None else f"not ready: {fault}")
        return fault
