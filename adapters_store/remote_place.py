"""Files behind an fsspec URL, such as s3://bucket/prefix, and what to do while it does not answer.

Here: RemotePlace. Not here: which files, and what they mean (remote_blobs.py, objects.py).
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.core import split_protocol, url_to_fs

from adapters_store.errors import Unavailable
from adapters_store.urls import without_secrets

CHUNK_BYTES = 8 << 20  # of an upload or download in parts; some are in memory at once


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


class RemotePlace:
    """Whole files by key, over one fsspec filesystem. Safe from several threads.

    `refuse_while_away` is for callers that would otherwise wait for a place that does not answer.
    """

    def __init__(self, url: str, *, marker: str) -> None:
        """Asks nothing of the place yet. `marker`: the key of a file that answers `probe`.

        Raises ValueError if nothing installed takes the URL.
        """
        self._name = without_secrets(url)
        self._marker = marker
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
        self.filesystem = filesystem
        self._root = root.rstrip("/")
        self._upload = options.upload
        self._away: str | None = None  # what the last call that failed said, until one succeeds
        self._asking_again = threading.Lock()
        # fsspec's asynchronous filesystems take calls from any thread, the others promise nothing.
        self._turn: AbstractContextManager[Any] = (
            nullcontext() if filesystem.async_impl else threading.Lock()
        )

    def probe(self) -> None:
        """Raises Unavailable unless the place answers, and has its marker."""
        with self._asking():
            self.filesystem.info(self._key(self._marker))

    def put(self, key: str, file: Path) -> None:
        """Uploads a file. Raises Unavailable."""
        with self._asking():
            self.filesystem.put_file(str(file), self._key(key), **self._upload)

    def get(self, key: str, target: Path) -> bool:
        """Downloads a file; False if it is not there. Raises Unavailable."""
        with self._asking():
            try:
                self.filesystem.get_file(self._key(key), str(target))
            except FileNotFoundError:
                return False
        return True

    def has(self, key: str) -> bool:
        """Raises Unavailable."""
        with self._asking():
            return self.filesystem.exists(self._key(key))

    def remove(self, key: str) -> None:
        """Removes a file if it is there. Raises Unavailable."""
        with self._asking(), suppress(FileNotFoundError):
            self.filesystem.rm_file(self._key(key))

    def keys(self, prefix: str) -> list[str]:
        """Of all files below a folder. Raises Unavailable."""
        with self._asking():
            found = self.filesystem.find(self._key(prefix))
        return [key.removeprefix(f"{self._root}/") for key in found]

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def refuse_while_away(self) -> None:
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
