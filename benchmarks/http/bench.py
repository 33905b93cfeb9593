"""The processes of the benchmark: a server, the generator that loads it, an engine without HTTP.

Here: Bench, Window (what a load took of each process). Not here: which loads, what is made of it.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil

from benchmarks.http.generator import Outcome
from benchmarks.http.in_process import Finished, Setup
from benchmarks.http.load import Load
from benchmarks.own_server import ROOT, OwnServer, own_server, push

SETTLE_S = 0.1  # once idle, the engine tells its totals at once
TOTALS = re.compile(r"^adapterd_engine_(steps|step_seconds)_total (\S+)$", re.MULTILINE)


class ProcessFailed(Exception):
    """A process of the benchmark ended early; what it wrote went to the terminal."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one load took. CPU seconds of all of a process's threads."""

    outcome: Outcome
    api_cpu_s: float
    engine_cpu_s: float
    steps: float
    step_s: float  # the engine's, in steps

    @property
    def tokens_per_s(self) -> float:
        return self.outcome.tokens / self.outcome.seconds

    @property
    def requests_per_s(self) -> float:
        return len(self.outcome.complete) / self.outcome.seconds


class Lines:
    """A process that answers a line with a line."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """Raises ProcessFailed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProcessFailed(f"{self._process.args} ended with {self._process.wait()}")
        return line

    def end(self) -> None:
        """It stops when there is nothing more to read."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Bench:
    """A server with its adapters, and beside it, idle in turn, an engine without HTTP."""

    def __init__(self, server: OwnServer, generator: Lines, engine: Lines) -> None:
        self._url = server.url
        self._api = psutil.Process(server.pid)
        self._engine = next(
            child for child in self._api.children() if "server.engine" in child.cmdline()
        )
        self._generator = generator
        self._without_http = engine

    def over_http(self, load: Load) -> Window:
        """Raises ProcessFailed."""
        before = self._taken()
        self._generator.say(load.to_json())
        outcome = Outcome.from_json(self._generator.hear())
        time.sleep(SETTLE_S)
        spent = [after - start for after, start in zip(self._taken(), before, strict=True)]
        return Window(outcome, *spent)

    def without_http(self, load: Load) -> Finished:
        """Raises ProcessFailed."""
        self._without_http.say(load.to_json())
        return Finished(**json.loads(self._without_http.hear()))

    def _taken(self) -> tuple[float, float, float, float]:
        """So far: the API's and the engine's CPU seconds, steps, seconds in steps."""
        text = httpx2.get(f"{self._url}/metrics", trust_env=False).raise_for_status().text
        totals = {name: float(value) for name, value in TOTALS.findall(text)}
        api, engine = (one.cpu_times() for one in (self._api, self._engine))
        return (
            api.user + api.system,
            engine.user + engine.system,
            totals["steps"],
            totals["step_seconds"],
        )


@contextmanager
def started(setup: Setup) -> Iterator[Bench]:
    """All of it, the adapters uploaded; ended on every way out."""
    with ExitStack() as stack:
        engine = Lines("benchmarks.http.in_process")
        stack.callback(engine.end)
        engine.say(json.dumps(asdict(setup)))
        server = stack.enter_context(own_server(Path(setup.base), *setup.options()))
        for name, folder in setup.adapters.items():
            push(server.url, name, Path(folder))
        generator = Lines("benchmarks.http.generator", server.url)
        stack.callback(generator.end)
        engine.hear()
        yield Bench(server, generator, engine)
