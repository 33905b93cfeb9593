"""`adapterd serve` as a real process: started, waited for, and always ended.

Its log is printed when a test fails while it runs, and part of every error here.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S = 120.0
STOP_S = 30.0
ROOT = Path(__file__).parent.parent.parent
# What an installation's script does: our packages are found wherever one stands.
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from server.cli import main; main()"
ADAPTERD = (sys.executable, "-P", "-c", START)


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that has said where it serves."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def text(self) -> str:
        """What it has printed so far, on either stream."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def engine(self) -> psutil.Process:
        """Its engine's process."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "server.engine" in child.cmdline())

    def wait(self, timeout_s: float = STOP_S) -> int:
        """The exit status, once it has ended by itself."""
        return self.process.wait(timeout_s)


@contextmanager
def serving(folder: Path, *arguments: str, cwd: Path = ROOT) -> Iterator[ServerProcess]:
    """A server on a free port, its data and log in `folder`; killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"server-{len(list(folder.glob('server-*.log')))}.log"
    command = [*ADAPTERD, "serve", "--port", "0", "--data-dir", str(folder / "data"), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, env=_environ()
        )
    try:
        yield ServerProcess(process, _url_when_ready(process, log), log)
    except BaseException:
        print(f"--- {log.name} ---\n{log.read_text(errors='replace')}")
        raise
    finally:
        _end(process)


@contextmanager
def working(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A training worker on the data folder of a server in `folder`; killed at the end."""
    log = folder / f"worker-{len(list(folder.glob('worker-*.log')))}.log"
    command = [*ADAPTERD, "worker", "--data-dir", str(folder / "data"), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=_environ()
        )
    try:
        yield process
    except BaseException:
        print(f"--- {log.name} ---\n{log.read_text(errors='replace')}")
        raise
    finally:
        _end(process)


def adapterd(*arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    environ = _environ({"ADAPTERD_SERVER": url} if url else None)
    return subprocess.run(
        [*ADAPTERD, *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=START_S,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def gone(processes: Sequence[psutil.Process], within_s: float) -> bool:
    """Whether all of them end in time."""
    return not psutil.wait_procs(processes, timeout=within_s)[1]


def _environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    # Offline: what is served lies in a folder, and a test must not depend on a hub.
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | dict(more or {})


def _url_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if found := re.search(r"serves at (http://\S+)", log.read_text(errors="replace")):
            return found[1]
        assert process.poll() is None, f"the server ended with status {process.returncode}"
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready within {START_S} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the server and its engine, if a test left them."""
    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for child in family:
        if child.is_running():
            child.kill()
