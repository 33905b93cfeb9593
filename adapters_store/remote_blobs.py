"""Versions at rest behind an fsspec URL, such as s3://bucket/prefix, with copies on this machine.

Here: RemoteBlobs. Not here: the copies' folder (blob_cache.py), names, the catalog.

    <url>/sha256/ab/ab…/{adapter_model.safetensors, adapter_config.json}
    <url>/adapterd-store.json            says that this is a store, and answers probes

An object store has no rename. It shows an object whole or not at all, so the weights are written
first and the config last, and removed the other way round: where a config is, everything is.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from adapters_store.blob_cache import BlobCache
from adapters_store.blobs import DIGEST, no_version, place_of
from adapters_store.content import AdapterContent
from adapters_store.errors import StoreCorrupt, Unavailable
from adapters_store.objects import RemoteObjects
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME, load_package, package_digest
from adapters_store.remote_place import RemotePlace

STORE_NAME = "adapterd-store.json"
FETCHES = 2  # a download that does not match its digest is tried once more

logger = logging.getLogger(__name__)


class RemoteBlobs:
    """Blobs, and an AdapterSource, over one fsspec filesystem. Safe from several threads.

    True throughout: a version is complete or absent to every reader, in any process; a copy is
    served only after all of its bytes were checked, and without asking the store: what was copied
    goes on being served while the store is away. Whether a version is still referred to is the
    caller's knowledge, as is keeping `put` and `delete` of one digest apart.
    """

    def __init__(self, url: str, cache: BlobCache) -> None:
        """Asks nothing of the store yet. Raises ValueError if nothing installed takes the URL."""
        self._cache = cache
        self._place = RemotePlace(url, marker=STORE_NAME)

    def close(self) -> None:
        """Gives up staging; versions and copies stay."""
        self._cache.close()

    def found(self) -> None:
        """Makes the URL a store, unless it is one. Raises Unavailable."""
        with self._cache.staging() as staging:
            if not self._place.has(STORE_NAME):
                (staging / STORE_NAME).write_text(json.dumps({"layout": 1}) + "\n")
                self._place.put(STORE_NAME, staging / STORE_NAME)

    @property
    def objects(self) -> RemoteObjects:
        return RemoteObjects(self._place)

    def probe(self) -> None:
        """Raises Unavailable unless the store answers, and is one."""
        self._place.probe()

    def staging(self) -> AbstractContextManager[Path]:
        """A new folder on this machine's disk, removed afterwards with what is left in it."""
        return self._cache.staging()

    def put_ahead(self, digest: str, package: Path) -> None:
        """Uploads a package from staging. Raises Unavailable.

        Also what rests there already: whether it is damaged would take as long to find out, and
        uploading again is the remedy StoreCorrupt has. The bytes are the same, so no reader minds.
        """
        place = place_of(digest)
        self._place.refuse_while_away()
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            self._place.put(f"{place}/{name}", package / name)

    def put(self, digest: str, package: Path) -> None:
        """Sees that the package is there, uploading it if not, and keeps it as a copy.

        Raises Unavailable.
        """
        place = place_of(digest)
        self._place.refuse_while_away()
        if not all(self._place.has(f"{place}/{name}") for name in (WEIGHTS_NAME, CONFIG_NAME)):
            self.put_ahead(digest, package)
        self._cache.put(digest, package)

    def delete(self, digest: str) -> None:
        """Removes the version if it is there. Copies on other machines go when room is needed.

        If the store is away the files stay, which the log says: nobody refers to them any more,
        and publishing the same content makes them a version again.
        """
        place = place_of(digest)
        self._cache.delete(digest)
        try:
            self._place.refuse_while_away()
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                self._place.remove(f"{place}/{name}")
        except Unavailable as away:
            logger.warning("files of the deleted version %s stay: %s", digest, away.message)

    def digests(self) -> Iterator[str]:
        """Of all versions at rest, half-written ones too; some may come or go meanwhile."""
        self._place.refuse_while_away()
        keys = self._place.keys("sha256")
        yield from filter(DIGEST.fullmatch, {Path(key).parent.name for key in keys})

    def read(self, digest: str) -> AdapterContent:
        """The version's content, tensors memory-mapped, after checking all of its bytes.

        Raises AdapterNotFound, StoreCorrupt, Unavailable.
        """
        folder = self._cache.find(digest)
        if folder is not None:
            try:
                return load_package(folder, digest)
            except FileNotFoundError:
                pass  # dropped since it was checked
        with self._fetched(digest) as package:
            content = load_package(package, digest)  # mapped: it matters no more where the files go
            self._cache.put(digest, package)
        return content

    def verified(self, digest: str) -> Path:
        """The folder of the version's copy, after checking all of its bytes. Errors as `read`."""
        folder = self._cache.find(digest)
        while folder is None:
            with self._fetched(digest) as package:
                self._cache.put(digest, package)
            folder = self._cache.find(digest)
        return folder

    @contextmanager
    def _fetched(self, digest: str) -> Iterator[Path]:
        """The version's files in staging, checked."""
        self._place.refuse_while_away()
        with self._cache.staging() as staging:
            package = staging / digest
            for left in reversed(range(FETCHES)):
                try:
                    self._fetch(digest, package)
                    break
                except StoreCorrupt as damaged:
                    if not left:
                        raise
                    logger.warning("fetched again: %s", damaged.message)
                    shutil.rmtree(package)
            yield package

    def _fetch(self, digest: str, package: Path) -> None:
        """Raises AdapterNotFound, StoreCorrupt, Unavailable."""
        place = place_of(digest)
        package.mkdir()
        if not self._place.get(f"{place}/{CONFIG_NAME}", package / CONFIG_NAME):
            self.probe()  # a bucket that is gone has no objects either
            raise no_version(digest)
        if not self._place.get(f"{place}/{WEIGHTS_NAME}", package / WEIGHTS_NAME):
            if self._place.get(f"{place}/{CONFIG_NAME}", package / CONFIG_NAME):
                raise StoreCorrupt(f"stored version {digest} lacks a file")
            raise no_version(digest)  # deleted between the two
        found = package_digest(package)
        if found != digest:
            raise StoreCorrupt(f"stored version {digest} now has the digest {found}")
