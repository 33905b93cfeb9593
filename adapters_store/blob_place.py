"""Where versions rest, as plain data, and how to get at them.

Here: BlobPlace. Not here: how folders and URLs are read (blobs.py, remote_blobs.py).
"""

from dataclasses import dataclass
from pathlib import Path

from fsspec.core import split_protocol

from adapters_store.blob_cache import BlobCache
from adapters_store.blobs import Blobs, FolderBlobs, OwnedBlobs
from adapters_store.content import AdapterSource
from adapters_store.remote_blobs import RemoteBlobs
from adapters_store.urls import without_secrets


@dataclass(frozen=True, slots=True)
class BlobPlace:
    """A folder, or a URL with a folder for copies. Plain, so that another process can be told."""

    url: str  # a folder's path, or an fsspec URL
    cache: str = ""  # folder on this machine for copies of what rests at a URL
    cache_bytes: int = 10 << 30  # of copies, at most

    def __str__(self) -> str:
        """The URL as anybody may read it."""
        return without_secrets(self.url)

    @property
    def folder(self) -> Path | None:
        """The folder that it is, if it is one."""
        protocol, path = split_protocol(self.url)
        return Path(path).expanduser() if protocol in (None, "file", "local") else None

    @property
    def local(self) -> Path:
        """The folder on this machine that holds versions: all of them, or copies."""
        return self.folder or Path(self.cache)

    def open(self) -> Blobs:
        """To read and to write, for the serving process; makes the place if it is not there.

        Raises Unavailable, OSError, ValueError (no installed package takes the URL).
        """
        if self.folder is not None:
            return OwnedBlobs(self.folder)
        blobs = self._remote()
        try:
            blobs.found()
        except BaseException:
            blobs.close()
            raise
        return blobs

    def reader(self) -> AdapterSource:
        """To read, for any process. Does not ask the place yet. Raises OSError, ValueError."""
        return self._remote() if self.folder is None else FolderBlobs(self.folder)

    def _remote(self) -> RemoteBlobs:
        cache = BlobCache(Path(self.cache), self.cache_bytes)
        try:
            return RemoteBlobs(self.url, cache)
        except ValueError:
            cache.close()
            raise
