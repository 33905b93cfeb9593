"""A tiny base and adapters for the whole run; servers that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.e2e.tiny_base import make_tiny_adapters, make_tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_adapters(base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for a module's tests that leave it running."""
    with serving(tmp_path_factory.mktemp("server"), "--model", str(base)) as started:
        yield started
