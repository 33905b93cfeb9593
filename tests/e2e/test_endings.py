"""How a server ends, and how its parts die: nothing is lost, and nothing stays behind."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.e2e.server_process import ServerProcess, adapterd, gone, serving

TOKENS = 200  # a stream of a second or so, many on a busy machine
ENDLESS = 4000


@dataclass
class Stream:
    """A completion that is read by a thread of its own."""

    url: str
    tokens: int = TOKENS
    chunks: list[str] = field(default_factory=list)  # data of the events so far
    error: BaseException | None = None

    def start(self) -> "Stream":
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        return self

    def wait_for_chunks(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.chunks) < count:
            assert self.thread.is_alive(), f"ended early: {self.error!r} {self.chunks[-1:]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _read(self) -> None:
        body = {
            "model": "base", "prompt": "Once upon a time", "max_tokens": self.tokens,
            "stream": True, "ignore_eos": True, "temperature": 0,
        }  # fmt: skip
        try:
            with (
                httpx2.Client(timeout=60, trust_env=False) as client,
                client.stream("POST", self.url + "/v1/completions", json=body) as response,
            ):
                for event in httpx2.EventSource(response):
                    self.chunks.append(event.data)
        except httpx2.HTTPError as error:
            self.error = error

    def finished(self) -> bool:
        """Whether it came to its own end."""
        self.thread.join(60)
        return self.chunks[-1:] == ["[DONE]"] and '"finish_reason":"length"' in self.chunks[-2]

    def refused_with(self) -> str:
        """The code of the error that it ended with."""
        self.thread.join(60)
        return json.loads(self.chunks[-1])["error"]["code"]


@pytest.fixture
def own_server(base: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may end."""
    with serving(tmp_path, "--model", str(base), "--served-model-name", "base") as started:
        yield started


def test_sigterm_lets_a_running_stream_finish(own_server: ServerProcess) -> None:
    stream = Stream(own_server.url).start()
    stream.wait_for_chunks(3)
    engine = own_server.engine()
    own_server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(own_server.url + "/health/live", trust_env=False)
    assert stream.finished(), own_server.text()
    assert own_server.wait() == 0
    assert gone([engine], within_s=1)


def test_a_second_signal_ends_at_once(own_server: ServerProcess) -> None:
    stream = Stream(own_server.url, tokens=ENDLESS).start()
    stream.wait_for_chunks(3)
    engine = own_server.engine()
    own_server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    own_server.process.send_signal(signal.SIGTERM)
    assert own_server.wait(timeout_s=10) == 128 + signal.SIGTERM
    assert gone([engine], within_s=1)
    assert not stream.finished()


def test_a_second_signal_still_answers_what_it_ends(own_server: ServerProcess) -> None:
    body = {"model": "base", "prompt": "Once", "max_tokens": ENDLESS, "ignore_eos": True}
    stream = Stream(own_server.url, tokens=ENDLESS).start()
    with ThreadPoolExecutor() as pool:
        url = own_server.url + "/v1/completions"
        asked = [
            pool.submit(httpx2.post, url, json=body, timeout=60, trust_env=False) for _ in range(2)
        ]
        stream.wait_for_chunks(3)
        own_server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        own_server.process.send_signal(signal.SIGTERM)
        for reply in [one.result() for one in asked]:
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "engine_unavailable"
            assert "x-request-id" in reply.headers
    assert stream.refused_with() == "engine_unavailable"
    assert own_server.wait(timeout_s=10) == 128 + signal.SIGTERM
    assert "Traceback" not in own_server.text()


def test_draining_has_an_end(base: Path, tmp_path: Path) -> None:
    told = ("--model", str(base), "--served-model-name", "base", "--drain-seconds", "1")
    with serving(tmp_path, *told) as server:
        stream = Stream(server.url, tokens=ENDLESS).start()
        stream.wait_for_chunks(3)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(timeout_s=20) == 0
        assert stream.refused_with() == "engine_unavailable"
        assert "Traceback" not in server.text()


def test_the_engine_does_not_outlive_a_killed_server(own_server: ServerProcess) -> None:
    stream = Stream(own_server.url).start()
    stream.wait_for_chunks(3)
    engine = own_server.engine()
    own_server.process.kill()
    own_server.wait()
    assert gone([engine], within_s=10)


def test_a_killed_engine_ends_its_requests_and_comes_back(own_server: ServerProcess) -> None:
    streams = [Stream(own_server.url).start() for _ in range(3)]
    for stream in streams:
        stream.wait_for_chunks(3)
    killed = own_server.engine()
    killed.kill()
    started = time.monotonic()
    for stream in streams:
        stream.thread.join(10)
        assert not stream.thread.is_alive(), "a request did not end within 10 s"
        assert stream.refused_with() == "engine_unavailable"
    while httpx2.get(own_server.url + "/health/ready", trust_env=False).status_code != 200:
        assert time.monotonic() - started < 60
        time.sleep(0.1)
    assert own_server.engine().pid != killed.pid
    again = Stream(own_server.url, tokens=20).start()
    assert again.finished()


def test_a_restart_keeps_adapters(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    name, source = next(iter(adapters.items()))
    ask = ("complete", "--raw", "--max-tokens", "12", "--adapter", name, "Once upon a time")
    with serving(tmp_path, "--model", str(base)) as server:
        assert adapterd("adapters", "push", str(source), "-n", name, url=server.url).returncode == 0
        before = adapterd(*ask, url=server.url).stdout
        everything = [psutil.Process(server.process.pid), server.engine()]
        server.process.kill()  # no goodbye
        assert gone(everything, within_s=10)
    with serving(tmp_path, "--model", str(base)) as server:
        assert f"adapters  {name}\n" in server.text()
        assert adapterd(*ask, url=server.url).stdout == before
