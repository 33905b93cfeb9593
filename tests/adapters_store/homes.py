"""Where a store under test lives: all in one folder, or behind an S3 and a PostgreSQL."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from adapters_store.blob_place import BlobPlace
from adapters_store.content import AdapterSource
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from adapters_store.store import AdapterStore

_others = count()


@dataclass(frozen=True)
class Home:
    folder: Path
    place: BlobPlace
    catalog: str | None

    def open(self) -> AdapterStore:
        """The store, as this machine's server has it."""
        return AdapterStore(
            self.folder / "data", base_name="demo", blobs=self.place, catalog=self.catalog
        )

    def open_elsewhere(self) -> AdapterStore:
        """The same store, as another replica has it; without copies of anything yet."""
        data = self.folder / "data"
        if self.catalog is not None:
            data = self.folder / f"data{next(_others)}"
        return AdapterStore(
            data, base_name="demo", blobs=elsewhere(self.place), catalog=self.catalog
        )


def elsewhere(place: BlobPlace) -> BlobPlace:
    """The place as seen from a machine that has no copies."""
    return replace(place, cache=f"{place.cache}-{next(_others)}")


def reader_elsewhere(place: BlobPlace) -> AdapterSource:
    return elsewhere(place).reader()


@lru_cache(maxsize=1)
def objects_of(place: BlobPlace) -> "Objects":
    """The same each time for one place: making a client takes a second."""
    return Objects(place)


class Objects:
    """The bare files behind a place, whatever kind it is, past all of the product's code."""

    def __init__(self, place: BlobPlace) -> None:
        filesystem: Any
        filesystem, root = url_to_fs(place.url, skip_instance_cache=True, use_listings_cache=False)
        self.filesystem, self._root = filesystem, root

    def path(self, digest: str, name: str) -> str:
        return f"{self._root}/sha256/{digest[:2]}/{digest}/{name}"

    def read(self, digest: str, name: str) -> bytes:
        return self.filesystem.cat_file(self.path(digest, name))

    def write(self, digest: str, name: str, data: bytes) -> None:
        self.filesystem.pipe_file(self.path(digest, name), data)

    def remove(self, digest: str, name: str) -> None:
        self.filesystem.rm_file(self.path(digest, name))

    def digests(self) -> set[str]:
        """Of the versions at rest; each must have its two files and nothing else."""
        found: dict[str, set[str]] = {}
        for path in self.filesystem.find(f"{self._root}/sha256"):
            digest, name = path.split("/")[-2:]
            found.setdefault(digest, set()).add(name)
        assert all(names == {CONFIG_NAME, WEIGHTS_NAME} for names in found.values()), found
        return set(found)
