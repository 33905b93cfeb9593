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
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.core import split_protocol, url_to_fs

from adapters_store.blob_cache import BlobCache
from adapters_store.blobs import DIGEST, no_version, place_of
from adapters_store.content import AdapterContent
from adapters_store.errors import StoreCorrupt, Unavailable
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME, load_package, package_digest
from adapters_store.urls import without_secrets

STORE_NAME = "adapterd-store.json"
FETCHES = 2  # a download that does not match its digest is tried once more
CHUNK_BYTES = 8 << 20  # of an upload or download in parts; some are in memory at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Options:
    """What a kind of filesystem is told beyond the URL."""

    filesystem: Mapping[str, Any] = field(default_factory=dict)
    upload: Mapping[str, Any] = field(default_factory=dict)  # of `put_file`
    tries: int | None = None  # s3fs', of each call


# Without these an endpoint that is down is asked for more than a minute before s3fs says so, and an
# upload holds up to half a gigabyte in memory. Address and keys: AWS_ENDPOINT_URL, AWS_… as usual.
_S3 = _Options(
    filesystem={
        "default_block_size": CHUNK_BYTES,
        "max_concurrency": 4,
        "config_kwargs": {
            "connect_timeout": 3,
            "read_timeout": 10,
            "retries": {"mode": "standard", "total_max_attempts": 2},
        },
    },
    upload={"chunksize": CHUNK_BYTES},
    tries=2,
)
_OPTIONS = {"s3": _S3, "s3a": _S3}


class RemoteBlobs:
    """Blobs, and an AdapterSource, over one fsspec filesystem. Safe from several threads.

    True throughout: a version is complete or absent to every reader, in any process; a copy is
    served only after all of its bytes were checked, and without asking the store: what was copied
    goes on being served while the store is away. Whether a version is still referred to is the
    caller's knowledge, as is keeping `put` and `delete` of one digest apart.
    """

    def __init__(self, url: str, cache: BlobCache) -> None:
        """Asks nothing of the store yet. Raises ValueError if nothing installed takes the URL."""
        self._name = without_secrets(url)
        self._cache = cache
        options = _OPTIONS.get(split_protocol(url)[0] or "", _Options())
        filesystem: Any  # each has more than fsspec's own class says
        try:
            filesystem, root = url_to_fs(url, skip_instance_cache=True, **options.filesystem)
        except (ImportError, ValueError) as unknown:
            raise ValueError(
                f"the store {self._name} cannot be opened: {without_secrets(str(unknown))}. "
                "For s3:// install adapterd[s3]"
            ) from None
        filesystem.dircache.use_listings_cache = False  # other replicas write, too
        if options.tries is not None:
            filesystem.retries = options.tries
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._upload = options.upload
        self._away: str | None = None  # what the last call that failed said, until one succeeds
        self._asking_again = threading.Lock()
        # fsspec's asynchronous filesystems take calls from any thread, the others promise nothing.
        self._turn: AbstractContextManager[Any] = (
            nullcontext() if filesystem.async_impl else threading.Lock()
        )

    def close(self) -> None:
        """Gives up staging; versions and copies stay."""
        self._cache.close()

    def found(self) -> None:
        """Makes the URL a store, unless it is one. Raises Unavailable."""
        with self._asking(), self._cache.staging() as staging:
            if not self._filesystem.exists(self._key(STORE_NAME)):
                (staging / STORE_NAME).write_text(json.dumps({"layout": 1}) + "\n")
                self._filesystem.put_file(str(staging / STORE_NAME), self._key(STORE_NAME))

    def probe(self) -> None:
        """Raises Unavailable unless the store answers, and is one."""
        with self._asking():
            self._filesystem.info(self._key(STORE_NAME))

    def staging(self) -> AbstractContextManager[Path]:
        """A new folder on this machine's disk, removed afterwards with what is left in it."""
        return self._cache.staging()

    def put_ahead(self, digest: str, package: Path) -> None:
        """Uploads a package from staging. Raises Unavailable.

        Also what rests there already: whether it is damaged would take as long to find out, and
        uploading again is the remedy StoreCorrupt has. The bytes are the same, so no reader minds.
        """
        place = place_of(digest)
        self._refuse_while_away()
        with self._asking():
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                target = self._key(f"{place}/{name}")
                self._filesystem.put_file(str(package / name), target, **self._upload)

    def put(self, digest: str, package: Path) -> None:
        """Sees that the package is there, uploading it if not, and keeps it as a copy.

        Raises Unavailable.
        """
        place = place_of(digest)
        self._refuse_while_away()
        with self._asking():
            there = [
                self._filesystem.exists(self._key(f"{place}/{name}"))
                for name in (WEIGHTS_NAME, CONFIG_NAME)
            ]
        if not all(there):
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
            self._refuse_while_away()
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                self._remove(self._key(f"{place}/{name}"))
        except Unavailable as away:
            logger.warning("files of the deleted version %s stay: %s", digest, away.message)

    def digests(self) -> Iterator[str]:
        """Of all versions at rest, half-written ones too; some may come or go meanwhile."""
        self._refuse_while_away()
        with self._asking():
            keys = self._filesystem.find(self._key("sha256"))
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
        self._refuse_while_away()
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
        if not self._get(f"{place}/{CONFIG_NAME}", package / CONFIG_NAME):
            self.probe()  # a bucket that is gone has no objects either
            raise no_version(digest)
        if not self._get(f"{place}/{WEIGHTS_NAME}", package / WEIGHTS_NAME):
            if self._get(f"{place}/{CONFIG_NAME}", package / CONFIG_NAME):
                raise StoreCorrupt(f"stored version {digest} lacks a file")
            raise no_version(digest)  # deleted between the two
        found = package_digest(package)
        if found != digest:
            raise StoreCorrupt(f"stored version {digest} now has the digest {found}")

    def _get(self, key: str, target: Path) -> bool:
        """Downloads one object; False if it is not there."""
        with self._asking():
            try:
                self._filesystem.get_file(self._key(key), str(target))
            except FileNotFoundError:
                return False
        return True

    def _remove(self, key: str) -> None:
        with self._asking(), suppress(FileNotFoundError):
            self._filesystem.rm_file(key)

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _refuse_while_away(self) -> None:
        """Raises Unavailable if the last call failed, unless the store is found to be back.

        One thread at a time finds that out, and the others are told at once: a store that does not
        even refuse is given up after 40 seconds, and threads that wait for it are not there
        for the adapters whose copies are at hand.
        """
        away = self._away
        if away is None:
            return
        if not self._asking_again.acquire(blocking=False):
            raise Unavailable(away)
        try:
            self.probe()
        finally:
            self._asking_again.release()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """For calls of the filesystem. Whatever they raise means that the store cannot answer.

        Each of fsspec's filesystems has errors of its own, from OSError to its HTTP client's, so
        none can be listed; an object that is not there is dealt with inside.
        """
        try:
            with self._turn:
                yield
        except Exception as fault:
            reason = without_secrets(str(fault)) or type(fault).__name__
            self._away = f"the store at {self._name} cannot answer now: {reason}"
            raise Unavailable(self._away) from fault
        self._away = None
