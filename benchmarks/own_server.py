"""A server of one's own for as long as a `with` lasts, and what is set up on it over HTTP."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

ROOT = Path(__file__).parent.parent
START = "from server.cli import main; main()"
READY_S = 120.0
ANSWER_S = 600.0
FILES = ("adapter_config.json", "adapter_model.safetensors")


class ServerNotReady(Exception):
    """The server ended or did not become ready; says what it wrote last."""


@dataclass(frozen=True, slots=True)
class OwnServer:
    url: str
    pid: int  # of the process that answers; the engine's is its child


@contextmanager
def own_server(base: Path, *options: str) -> Iterator[OwnServer]:
    """`adapterd serve` on a free loopback port, with a data folder of its own; stopped at the end.

    Also when SIGTERM ends the benchmark meanwhile. Main thread only. Raises ServerNotReady.
    """
    with ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        stack.callback(signal.signal, signal.SIGTERM, before)
        data = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(tempfile.TemporaryFile(mode="w+"))
        port = _free_port()
        command = [sys.executable, "-c", START, "serve", "--model", str(base)]
        command += ["--port", str(port), "--data-dir", data, *options]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        stack.callback(_stop, process)
        url = f"http://127.0.0.1:{port}"
        if not _ready(url, process):
            log.seek(0)
            raise ServerNotReady(log.read()[-2000:])
        yield OwnServer(url, process.pid)


def push(url: str, name: str, folder: Path) -> None:
    """Uploads a PEFT folder's files under `name`. Raises httpx2.HTTPStatusError."""
    files = [("files", (file, (folder / file).read_bytes())) for file in FILES]
    with _client(url) as client:
        client.post("/v1/adapters", data={"name": name}, files=files).raise_for_status()


def base_name(url: str) -> str:
    """The name under which the server's base is asked."""
    with _client(url) as client:
        models = client.get("/v1/models").raise_for_status().json()["data"]
    return next(model["id"] for model in models if not model.get("parent"))


def _client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=ANSWER_S, trust_env=False)


def _ready(url: str, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> bool:
    """Whether the server answers before it ends and before READY_S are over."""
    deadline = time.monotonic() + READY_S
    with _client(url) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get("/health/ready").status_code == 200:
                    return True
            except httpx2.TransportError:
                pass  # not listening yet
            time.sleep(0.2)
    return False


def _stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
