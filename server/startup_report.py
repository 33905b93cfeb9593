"""What `adapterd serve` shows a person: the base loading, then where and what it serves.

Here: LoadBar, announcement. Not here: starting anything.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from server.engine.messages import EngineInfo, LoadProgress


class LoadBar:
    """One bar for each thing that loading counts, gone when loading is over. Use in a `with`."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "LoadBar":
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def show(self, event: LoadProgress) -> None:
        if event.what not in self._tasks:
            self._tasks[event.what] = self._progress.add_task(event.what)
        self._progress.update(self._tasks[event.what], completed=event.done, total=event.total)


@dataclass(frozen=True, slots=True)
class Serving:
    """What is being served, for the announcement."""

    version: str
    url: str
    base_name: str
    base: EngineInfo
    adapters: Sequence[str]
    more_adapters: bool  # than those named
    kept_in: str  # folders and URLs, without passwords
    chat: bool  # the base has a chat template
    example: tuple[str, str]  # a model's name, and what to ask it


SLOW = """
  note      the native CPU kernels are not in use: answers are the same, several times slower.
            Install a C++ compiler (g++), then install adapterd again; float16 has none."""


def announcement(serving: Serving) -> str:
    """Where it listens, what it serves, and a request that works word for word."""
    base = serving.base
    quantized = "" if base.quantization == "none" else f", {base.quantization} weights"
    facts = (
        f"{base.architecture}, {_count(base.parameters)} parameters, {base.dtype}{quantized} on "
        f"{base.device}, context {base.max_model_len}"
    )
    slow = base.device == "cpu" and base.kernels == "torch"
    adapters = ", ".join(serving.adapters) + (", …" if serving.more_adapters else "")
    return f"""
adapterd {serving.version} serves at {serving.url}
  base      {serving.base_name} ({facts}, loaded in {base.load_s:.1f} s)
  adapters  {adapters or "none yet: adapterd adapters push FOLDER --name NAME"}
  kept in   {serving.kept_in}{SLOW if slow else ""}

Try it in another terminal:
  {_curl(serving)}

Ctrl-C stops it.
"""


def _curl(serving: Serving) -> str:
    model, text = serving.example
    asked = {"messages": [{"role": "user", "content": text}]} if serving.chat else {"prompt": text}
    path = "/v1/chat/completions" if serving.chat else "/v1/completions"
    request = {"model": model, **asked, "max_tokens": 64, "temperature": 0}
    body = json.dumps(request, ensure_ascii=False)
    header = "-H 'content-type: application/json'"
    return f"curl -s {serving.url}{path} {header} -d {shlex.quote(body)}"


def _count(number: int) -> str:
    """3200000 → "3.2 M"."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
