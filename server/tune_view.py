"""A study on the user's terminal: a live table of its trials, or a line for each end in a pipe.

Here: tune_view, LiveTrials, PlainTrials. Not here: the study, what is said at its end
(cli_tune.py).
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.cli_terminal import clock_text
from training.tune.search_space import words
from training.tune.tuner import Row

SHOWN = 30  # trials of a long study
STYLES = {"running": "cyan", "pruned": "dim", "failed": "red"}


class TrialsView(Protocol):
    """What training/tune tells."""

    def show(self, rows: Sequence[Row]) -> None: ...

    def say(self, message: str) -> None: ...


@contextmanager
def tune_view(trials: int, *, stderr: bool) -> Iterator[TrialsView]:
    """A live picture where there is a terminal. `stderr`: stdout is for a program."""
    console = Console(stderr=stderr)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainTrials(sys.stderr if stderr else sys.stdout)
        return
    view = LiveTrials(trials)
    with Live(console=console, get_renderable=view.picture):
        yield view


class PlainTrials:
    """A line when a trial begins, and one when it ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told: dict[int, str] = {}

    def show(self, rows: Sequence[Row]) -> None:
        first = not self._told
        for row in rows:
            if self._told.get(row.number) == row.state:
                continue
            self._told[row.number] = row.state
            if first and row.state != "running":
                continue  # known from before
            what = row.state if row.loss is None or row.state == "running" else _ended(row)
            self.say(f"trial {row.number} {what}: {_words(row)}")
        if first and (before := sum(row.state != "running" for row in rows)):
            self.say(f"{before} that are over are not told again")

    def say(self, message: str) -> None:
        print(f"{clock_text(time.time())}  {message}", file=self._out, flush=True)


class LiveTrials:
    """Keeps what the picture shows."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._rows: Sequence[Row] = ()
        self._message = ""

    def show(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def say(self, message: str) -> None:
        self._message = message

    def picture(self) -> RenderableType:
        """Of the trials as they were shown last."""
        done = [row for row in self._rows if row.state == "complete" and row.loss is not None]
        best = min(done, key=lambda row: row.loss or 0.0, default=None)
        table = Table("trial", "values", "loss", "state", "step")
        for row in self._rows[-SHOWN:]:
            table.add_row(
                str(row.number),
                _words(row),
                "" if row.loss is None else f"{row.loss:.4f}",
                Text("best" if row is best else row.state),
                f"{row.step}/{row.steps}" if row.state == "running" and row.steps else "",
                style="bold green" if row is best else STYLES.get(row.state, ""),
            )
        over = sum(row.state != "running" for row in self._rows)
        ends = f"{over} of {self._trials} trials"
        if best is not None:
            ends += f", the best is {best.number} at {best.loss:.4f}"
        return Group(table, Text(ends), Text(self._message, style="yellow"))


def _ended(row: Row) -> str:
    return f"{row.state} at {row.loss:.4f}"


def _words(row: Row) -> str:
    told = words(row.params) + (" (the defaults)" if row.number == 0 else "")
    return f"{told}: {row.error}" if row.error else told
