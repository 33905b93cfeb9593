"""A house whose load calls may read one folder, with two adapters in it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_store.sources import Sources
from tests.server.api.conftest import House, make_house
from tests.server.api.stores import write_adapter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "root" / "sql")
    write_adapter(tmp_path / "root" / "dates", seed=1)
    return tmp_path / "root"


@pytest.fixture
async def house(tmp_path: Path, root: Path) -> AsyncIterator[House]:
    async with make_house(tmp_path / "data", sources=Sources([root])) as made:
        yield made
