"""Places and catalogs of both kinds: in a folder, and on real servers."""

from pathlib import Path

import pytest

from adapters_store.blob_place import BlobPlace
from adapters_store.blobs import Blobs
from tests.adapters_store.homes import Home
from tests.support.servers import S3, PostgreSQL


@pytest.fixture
def remote_place(s3: S3, tmp_path: Path) -> BlobPlace:
    """A prefix of a bucket of its own."""
    return BlobPlace(f"s3://{s3.new_bucket()}/some/prefix", str(tmp_path / "store-cache"))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> BlobPlace:
    if request.param == "s3":
        return request.getfixturevalue("remote_place")
    return BlobPlace(str(tmp_path / "store"))


@pytest.fixture
def blobs(place: BlobPlace):
    """The place, opened to write."""
    opened: Blobs = place.open()
    yield opened
    opened.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """Of an empty database."""
    return postgresql.url(postgresql.empty_database())


@pytest.fixture(params=["local", "remote"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "remote":
        catalog = request.getfixturevalue("postgresql_url")
        return Home(tmp_path, request.getfixturevalue("remote_place"), catalog)
    return Home(tmp_path, BlobPlace(str(tmp_path / "data" / "store")), None)
