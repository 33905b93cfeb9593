"""How `adapterd` commands look: tables, bars, times.

Here: what several commands print alike. Not here: what any one of them prints.
"""

import sys
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table


def print_table(table: Table) -> None:
    """A pipe gets every column whole, a terminal what fits."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def transfer_bar() -> Progress:
    """Of bytes, on stderr; nothing where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def time_text(unix_s: float) -> str:
    """As the user's own clock shows it."""
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock_text(unix_s: float) -> str:
    """The same without the day."""
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%H:%M:%S")


def span_text(seconds: float) -> str:
    """42 → "42 s", 100 → "1 min 40 s", 4000 → "1 h 6 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
