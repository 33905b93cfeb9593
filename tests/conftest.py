"""For every test: no setting from outside, and slow ones only when asked for."""

import os
from collections.abc import Iterator

# Several processes test at once on the same cores: threads that wait must not keep one. Read when
# torch is imported, here and in what tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from tests.support import servers

# Where there is no GPU, Triton's kernels are interpreted. The flag is read when they are decorated,
# so it must be set before anything imports triton, as peft does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

KEPT = ("ADAPTERD_TEST_ALL", "ADAPTERD_DATA")  # of the tests themselves; no settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("ADAPTERD_TEST_ALL") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: set ADAPTERD_TEST_ALL=1"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.PostgreSQL]:
    """A real one, started for the run's first test that needs it."""
    with servers.postgresql() as started:
        yield started


@pytest.fixture(scope="session")
def _moto() -> Iterator[servers.S3]:
    with servers.moto_s3() as started:
        yield started


@pytest.fixture
def s3(_moto: servers.S3, monkeypatch: pytest.MonkeyPatch) -> servers.S3:
    """An S3 that this process and those it starts find by their environment."""
    for name, value in servers.s3_environment(_moto.port).items():
        monkeypatch.setenv(name, value)
    return _moto


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ADAPTERD_") and name not in KEPT:
            monkeypatch.delenv(name)
