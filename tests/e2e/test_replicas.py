"""Two servers on one S3 and one PostgreSQL: what one is given, the other serves; and what is left
when a part of it goes away."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.e2e.server_process import ServerProcess, adapterd, serving
from tests.support.door import Door
from tests.support.servers import PASSWORD, S3, PostgreSQL, s3_environment

ASK = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}


@dataclass(frozen=True)
class Replicas:
    one: ServerProcess
    other: ServerProcess
    store: Door
    catalog: Door
    place: str


@pytest.fixture
def replicas(
    base: Path,
    tmp_path: Path,
    s3: S3,
    postgresql: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Replicas]:
    """The first on the servers themselves; the second behind doors that the test may shut."""
    database, place = postgresql.empty_database(), f"s3://{s3.new_bucket()}/adapters"
    told = ["--model", str(base), "--served-model-name", "base", "--store", place]
    with Door(s3.port) as store, Door(postgresql.port) as catalog, ExitStack() as running:
        monkeypatch.setenv("ADAPTERD_CATALOG", postgresql.url(database))
        one = running.enter_context(serving(tmp_path / "one", *told))
        monkeypatch.setenv("ADAPTERD_CATALOG", postgresql.url(database, port=catalog.port))
        for name, value in s3_environment(store.port).items():
            monkeypatch.setenv(name, value)
        other = running.enter_context(serving(tmp_path / "other", *told))
        yield Replicas(one, other, store, catalog, place)


def test_they_serve_the_same_and_outlive_what_they_stand_on(
    replicas: Replicas, adapters: dict[str, Path]
) -> None:
    first, second = list(adapters)[:2]
    for name in (first, second):
        done = adapterd("adapters", "push", str(adapters[name]), "-n", name, url=replicas.one.url)
        assert done.returncode == 0, done.stderr
    answer = complete(replicas.other, first)
    assert answer.status_code == 200, answer.text
    assert text_of(answer) == text_of(complete(replicas.one, first))

    replicas.store.shut()
    assert text_of(complete(replicas.other, first)) == text_of(answer)
    refused = complete(replicas.other, second)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert replicas.place in refused.json()["error"]["message"]
    wait_until_away(replicas.other, replicas.place)
    assert complete(replicas.one, second).status_code == 200

    replicas.store.open()
    wait_until_ready(replicas.other)
    assert text_of(complete(replicas.other, second)) == text_of(complete(replicas.one, second))

    replicas.catalog.shut()
    refused = complete(replicas.other, first)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    wait_until_away(replicas.other, "postgresql")
    assert complete(replicas.other, "base").status_code == 200
    replicas.catalog.open()
    wait_until_ready(replicas.other)

    for server in (replicas.one, replicas.other):
        assert f"files in {replicas.place}, names in postgresql+psycopg://postgres:***@" in (
            server.text()
        )
        assert PASSWORD not in server.text()
        assert "sesame" not in server.text()
        assert "Traceback" not in server.text()


def complete(server: ServerProcess, model: str) -> httpx2.Response:
    body = ASK | {"model": model}
    return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60, trust_env=False)


def text_of(answer: httpx2.Response) -> str:
    return answer.json()["choices"][0]["text"]


def wait_until_away(server: ServerProcess, named: str) -> None:
    """Until it has noticed, and been told, which of the two it is."""
    readiness(server, 503, named)


def wait_until_ready(server: ServerProcess) -> None:
    readiness(server, 200)


def readiness(server: ServerProcess, status: int, named: str = "") -> None:
    deadline = time.monotonic() + 60
    while True:
        reply = httpx2.get(server.url + "/health/ready", timeout=10, trust_env=False)
        if reply.status_code == status and named in reply.text:
            return
        assert time.monotonic() < deadline, reply.text
        time.sleep(0.2)


def test_a_store_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path, s3: S3) -> None:
    for arguments, status, says in [
        (("--store", f"s3://{s3.new_bucket()}x"), 1, "bucket does not exist"),
        (("--store", "nosuch://me:sesame@host"), 2, "nosuch://me:***@host"),
        (("--catalog", "mysql://me:sesame@host/db"), 2, "postgresql://"),
        (("--catalog", "postgresql://me:sesame@127.0.0.1:1/db"), 1, "refused"),
    ]:
        done = adapterd("serve", "--port", "0", "--data-dir", str(tmp_path), *arguments)
        assert done.returncode == status, done.stderr
        assert says in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert "sesame" not in done.stderr
