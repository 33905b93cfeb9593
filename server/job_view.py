"""A training job on the user's terminal while it runs: a live picture, or plain lines in a pipe.

Here: JobView, job_view, LiveView, PlainView. Not here: where jobs and their events come from
(follow_job.py), what is said at the end (cli_jobs.py).
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.cli_terminal import clock_text, span_text

Job = dict[str, Any]
Event = dict[str, Any]

LAST_LINES = 6  # of what has happened, under the live picture
PLAIN_EVERY_S = 5.0  # between two lines of progress in a pipe
STYLES = {"warn": "yellow", "error": "red"}


class JobView(Protocol):
    """Whoever follows a job tells it here."""

    def show(self, job: Job, events: Sequence[Event] = ()) -> None:
        """The job as it is now, and what happened since the last call, the oldest first."""
        ...

    def say(self, message: str) -> None:
        """A line of our own."""
        ...


@contextmanager
def job_view() -> Iterator[JobView]:
    """A live picture where stdout is a terminal, lines elsewhere."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainView(PLAIN_EVERY_S)
        return
    view = LiveView()
    with Live(console=console, get_renderable=view.picture):
        yield view


class PlainView:
    """A line for each event, and one for progress now and then."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._step = 0
        self._told_at = float("-inf")  # time.monotonic()

    def show(self, job: Job, events: Sequence[Event] = ()) -> None:
        for event in events:
            level = "" if event["level"] == "info" else f"{event['level']}: "
            self._print(event["created_at"], level + event["message"])
        progress = job.get("progress")
        if progress is None or progress["step"] == self._step:
            return
        last = progress["step"] == progress["steps"]
        if last or time.monotonic() - self._told_at >= self._every_s:
            self._step, self._told_at = progress["step"], time.monotonic()
            self._print(time.time(), "  ".join(_figures(job, progress)))

    def say(self, message: str) -> None:
        self._print(time.time(), message)

    def _print(self, unix_s: float, text: str) -> None:
        print(f"{clock_text(unix_s)}  {text}", flush=True)


class LiveView:
    """Keeps what the picture shows; rich asks for the picture several times a second."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._lines: deque[Text] = deque(maxlen=LAST_LINES)

    def show(self, job: Job, events: Sequence[Event] = ()) -> None:
        self._job = job
        for event in events:
            style = STYLES.get(event["level"], "")
            self._add(event["created_at"], event["message"], style)

    def say(self, message: str) -> None:
        self._add(time.time(), message, "yellow")

    def picture(self) -> RenderableType:
        """Of the job as it was shown last; the time that is left runs on."""
        job = self._job
        if job is None:
            return Text("")
        rows: list[RenderableType] = [Text.assemble((job["id"], "bold"), "  ", job["status"])]
        if progress := job.get("progress"):
            bar = ProgressBar(total=progress["steps"], completed=progress["step"], width=60)
            table = Table.grid()  # a bar alone does not end its line
            table.add_row(bar)
            table.add_row(Text("  ".join(_figures(job, progress))))
            rows.append(table)
        return Group(*rows, *self._lines)

    def _add(self, unix_s: float, message: str, style: str) -> None:
        at = (clock_text(unix_s) + "  ", "dim")
        line = Text.assemble(at, (message, style), no_wrap=True, overflow="ellipsis")
        self._lines.append(line)


def _figures(job: Job, progress: dict[str, Any]) -> list[str]:
    """ "step 120/300", "epoch 1.2", "loss 0.4312", "5,210 tokens/s", "1 min 4 s left"."""
    found = [f"step {progress['step']}/{progress['steps']}"]
    if (epoch := progress.get("epoch")) is not None:
        found.append(f"epoch {epoch:.1f}")
    if (loss := progress.get("loss")) is not None:
        found.append(f"loss {loss:.4f}")
    if (speed := progress.get("tokens_per_second")) is not None:
        found.append(f"{speed:,.0f} tokens/s")
    finish = progress.get("estimated_finish") or job.get("estimated_finish")
    if finish is not None and progress["step"] < progress["steps"]:
        found.append(f"{span_text(finish - time.time())} left")
    return found
