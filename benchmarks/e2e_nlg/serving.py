"""A server of one's own for as long as a `with` lasts, and what is asked of it over HTTP."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks.e2e_nlg.data import DATA_VARIABLE
from benchmarks.e2e_nlg.offline import Reply
from benchmarks.e2e_nlg.prompt import message

START = "from server.cli import main; main()"
READY_S = 120.0
ANSWER_S = 600.0
AT_ONCE = 32  # requests open together
FILES = ("adapter_config.json", "adapter_model.safetensors")


class ServerNotReady(Exception):
    """The server ended or did not become ready; says what it wrote last."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One chat request. `model` is an adapter's name, or the base's."""

    model: str
    mr: str
    max_tokens: int


@contextmanager
def own_server(base: Path, threads: int) -> Iterator[str]:
    """Starts `adapterd serve` on a free port, in float32, and yields its URL; stops it after."""
    with ExitStack() as stack:
        data = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(tempfile.TemporaryFile(mode="w+"))
        port = _free_port()
        command = [sys.executable, "-c", START, "serve", "--model", str(base)]
        command += ["--port", str(port), "--data-dir", data, "--dtype", "float32"]
        command += ["--max-resident-adapters", "3", "--threads", str(threads)]
        env = {name: value for name, value in os.environ.items() if name != DATA_VARIABLE}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        stack.callback(_stop, process)
        url = f"http://127.0.0.1:{port}"
        if not _ready(url, process):
            log.seek(0)
            raise ServerNotReady(log.read()[-2000:])
        yield url


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


def ask_all(url: str, asks: Sequence[Ask]) -> list[Reply]:
    """Every answer, in the order of `asks`; AT_ONCE requests are open together."""
    return asyncio.run(_ask_all(url, asks))


async def _ask_all(url: str, asks: Sequence[Ask]) -> list[Reply]:
    room = asyncio.Semaphore(AT_ONCE)
    async with httpx2.AsyncClient(base_url=url, timeout=ANSWER_S, trust_env=False) as client:

        async def one(ask: Ask) -> Reply:
            async with room:
                return await _ask(client, ask)

        return list(await asyncio.gather(*(one(ask) for ask in asks)))


async def _ask(client: httpx2.AsyncClient, ask: Ask) -> Reply:
    body = {
        "model": ask.model,
        "messages": [message(ask.mr)],
        "max_tokens": ask.max_tokens,
        "temperature": 0,
    }
    response = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    text = response["choices"][0]["message"]["content"]
    return Reply(text, response["usage"]["completion_tokens"])


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
