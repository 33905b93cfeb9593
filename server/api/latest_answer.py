"""The latest answer to a blocking question, asked anew when it is old, and nobody waits long.

Here: LatestAnswer. Not here: any question (reachability.py, job_counts.py).
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Generic, TypeVar

EVERY_S = 5.0  # between two questions
PATIENCE_S = 0.8  # for an answer; orchestrators give a readiness probe a second

Answer = TypeVar("Answer")


class LatestAnswer(Generic[Answer]):
    """True throughout: at most one question is under way, in a thread of its own, however many ask
    and however long it hangs. For one event loop.
    """

    def __init__(
        self, ask: Callable[[], Answer], first: Answer, *, every_s: float, patience_s: float
    ) -> None:
        """`ask` blocks, and raises nothing; `first` is the answer until there is one."""
        self._ask = ask
        self._every_s = every_s
        self._patience_s = patience_s
        self._question: asyncio.Task[None] | None = None
        self._answered_s = -math.inf
        self.answer = first

    @property
    def age_s(self) -> float:
        """Of the answer; without one, for ever."""
        return time.monotonic() - self._answered_s

    async def refresh(self) -> bool:
        """Whether the answer is of late: not old, or given anew within the patience."""
        if self.age_s < self._every_s:
            return True
        self._question = self._question or asyncio.create_task(self._asked())
        done, _ = await asyncio.wait({self._question}, timeout=self._patience_s)
        return bool(done)

    async def _asked(self) -> None:
        self.answer = await asyncio.to_thread(self._ask)
        self._answered_s = time.monotonic()
        self._question = None
