"""Real servers for tests: a PostgreSQL cluster of its own, and moto's S3, each with a process.

Both listen on loopback only, keep everything in a temporary folder, and are gone after the run.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NoReturn

import httpx2
import pytest
from sqlalchemy import URL

PASSWORD = "open sesame/@"  # with characters that a URL must quote

# moto answers in place of S3; run in a process of its own, which says its port on stdout.
MOTO = """
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def missing(what: str) -> NoReturn:
    """Skips the test, or fails it where everything is to run."""
    if os.environ.get("ADAPTERD_TEST_ALL") == "1":
        pytest.fail(what)
    pytest.skip(what)


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """A running cluster; its superuser is `postgres`, its password PASSWORD over TCP."""

    port: int
    folder: Path

    def empty_database(self) -> str:
        """The name of the one that tests use in turn, emptied: making another takes a second."""
        self.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "postgres")
        return "postgres"

    def url(self, database: str, port: int | None = None, password: str = PASSWORD) -> str:
        """As a user would write it; `port`: of a Door in front."""
        url = URL.create(
            "postgresql", "postgres", password, "127.0.0.1", port or self.port, database
        )
        return url.render_as_string(hide_password=False)

    def run(self, statement: str, database: str) -> str:
        """What psql prints, over the socket in its folder."""
        command = ["psql", "-h", str(self.folder), "-p", str(self.port), "-U", "postgres"]
        done = subprocess.run(
            [*command, "-v", "ON_ERROR_STOP=1", "-Atqc", statement, database],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A cluster in a folder with a short path, as the socket's has to be."""
    programs = newest_programs()
    with tempfile.TemporaryDirectory(prefix="adapterd-pg-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        (folder / "password").write_text(PASSWORD)
        prefix: list[str] = []
        if os.getuid() == 0:  # initdb refuses to be root
            prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")

        def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            # To a file: the server keeps its parent's stdout, and a pipe would never end.
            with (folder / "output").open("w+") as output:
                done = subprocess.run(
                    [*prefix, str(programs / program), "-D", str(folder / "data"), *arguments],
                    stdout=output, stderr=subprocess.STDOUT, cwd="/", timeout=120, check=False,
                )  # fmt: skip
                output.seek(0)
                return subprocess.CompletedProcess(program, done.returncode, output.read())

        made_cluster = run(
            "initdb", "-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256",
            f"--pwfile={folder / 'password'}", "--no-sync", "-E", "UTF8",
        )  # fmt: skip
        assert made_cluster.returncode == 0, made_cluster.stdout
        port = start(run, folder)
        try:
            yield PostgreSQL(port, folder)
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def start(run, folder: Path) -> int:
    """Starts the cluster on a free port, and on another one if that was taken meanwhile."""
    said = ""
    for _ in range(5):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = (
            f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off "
            "-c max_connections=100"
        )
        started = run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        if started.returncode == 0:
            return port
        said = started.stdout + (folder / "log").read_text()
    raise AssertionError(said)


def newest_programs() -> Path:
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if not found or not shutil.which("psql"):
        missing("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


@dataclass(frozen=True, slots=True)
class S3:
    """moto's server, and how clients in other processes find it."""

    port: int
    numbers: Iterator[int]

    def new_bucket(self) -> str:
        """Makes an empty bucket; returns its name."""
        name = f"bucket{next(self.numbers)}"
        made = httpx2.put(f"http://127.0.0.1:{self.port}/{name}", trust_env=False)
        assert made.status_code == 200, made.text
        return name


def s3_environment(port: int) -> Mapping[str, str]:
    """For processes that ask the S3 at this port, directly or through a Door."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


@contextmanager
def moto_s3() -> Iterator[S3]:
    environ = os.environ | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", MOTO], stdout=subprocess.PIPE, stderr=log, text=True, env=environ
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                process.wait()
                log.seek(0)
                pytest.fail(f"moto did not start: {log.read()}")
            yield S3(int(line), count())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
