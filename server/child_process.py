"""How one of our modules is started as a process of its own, at the other end of a socket.

Here: what every start has in common, with nothing imported that takes time: `adapterd serve`
begins with its engine's process. Not here: what is said to a process afterwards.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SPINS = "20000"
"""How often the engine's OpenMP threads look for work before they sleep: about a millisecond. A
thousand were too few, and waking threads took a sixth of a decode step; libgomp's own 300,000 are
many milliseconds, in which a thread that waits keeps the processor from the very thread that it
waits for, and from the API process."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that runs one of our modules, and this end of the socket between us."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def close(self) -> None:
        """Ends the process, if it has not ended, and the connection to it."""
        self.process.kill()
        self.process.wait()
        self.socket.close()


def start_engine() -> Child:
    """An engine's process: it imports what it needs, then waits for its Start. Raises OSError."""
    return start_module("server.engine", {"GOMP_SPINCOUNT": SPINS} | os.environ)


def start_module(module: str, environment: dict[str, str]) -> Child:
    """Runs `module` under this interpreter; its argument is its descriptor of the socket.

    Raises OSError.
    """
    here, there = socket.socketpair()
    with there:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(there.fileno())],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                env=finding_ours(environment),
            )
        except OSError:
            here.close()
            raise
    return Child(process, here)


def finding_ours(environment: dict[str, str]) -> dict[str, str]:
    """The environment in which an interpreter finds these very packages first.

    It wants -P besides: a folder called server/ where one stands is not ours.
    """
    ours = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (ours, environment.get("PYTHONPATH"))))
    return environment | {"PYTHONPATH": path}
