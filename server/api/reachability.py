"""Whether what the server stands on answers, found out without making anybody wait long.

Here: Reachability. Not here: what is asked (AdapterStore.probe).
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from adapters_store.errors import AdapterdError, Unavailable

EVERY_S = 5.0  # between two questions
PATIENCE_S = 0.8  # for an answer; orchestrators give a readiness probe a second
LOST_S = 15.0  # without an answer; one that is only late, behind a large upload, is no fault

logger = logging.getLogger(__name__)


class Reachability:
    """The latest answer to a blocking question, asked anew when that is old.

    True throughout: at most one question is under way, in a thread of its own, however many ask
    and however long it hangs. For one event loop.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        *,
        every_s: float = EVERY_S,
        patience_s: float = PATIENCE_S,
        lost_s: float = LOST_S,
    ) -> None:
        """`probe` blocks; it raises an AdapterdError that says what does not answer."""
        self._probe = probe
        self._every_s = every_s
        self._patience_s = patience_s
        self._lost_s = lost_s
        self._question: asyncio.Task[None] | None = None
        self._answered_s = -math.inf
        self._fault: str | None = None

    async def check(self) -> None:
        """Raises Unavailable, saying what does not answer."""
        age_s = time.monotonic() - self._answered_s
        if age_s >= self._every_s:
            self._question = self._question or asyncio.create_task(self._ask())
            done, _ = await asyncio.wait({self._question}, timeout=self._patience_s)
            if not done and age_s >= self._lost_s:
                raise Unavailable("the store or its catalog does not answer")
        if self._fault is not None:
            raise Unavailable(self._fault)

    async def _ask(self) -> None:
        try:
            await asyncio.to_thread(self._probe)
            fault = None
        except AdapterdError as error:
            fault = error.message
        except Exception as error:  # whatever it is, requests would meet it too
            logger.exception("the store's probe failed")
            fault = f"the store cannot be asked: {type(error).__name__}"
        if fault != self._fault:
            logger.warning("ready again" if fault is None else f"not ready: {fault}")
        self._fault = fault
        self._answered_s = time.monotonic()
        self._question = None
