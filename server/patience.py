"""Asking a server again while it is away: its restart ends nothing that is followed.

Here: patiently. Not here: what is asked.
"""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from server.http_client import ServerError

RETRY_S = 1.0
OUTAGE_S = 120.0  # without an answer, before it is an error

Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")


def patiently(
    say: Callable[[str], None],
    ask: Callable[Arguments, Answer],
    *given: Arguments.args,
    **named: Arguments.kwargs,
) -> Answer:
    """The answer; `say` is told once that it has to be waited for.

    Raises ServerError if the server says no, or nothing for too long.
    """
    silent_since: float | None = None
    while True:
        try:
            return ask(*given, **named)
        except ServerError as error:
            if error.status is not None and error.status < 500:
                raise
            if silent_since is None:
                silent_since = time.monotonic()
                say(f"{error.message} Asking again…")
            elif time.monotonic() - silent_since > OUTAGE_S:
                raise
        time.sleep(RETRY_S)
