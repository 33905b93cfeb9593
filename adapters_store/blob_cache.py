"""Copies, on this machine's disk, of versions that rest elsewhere.

Here: BlobCache. Not here: where they come from (remote_blobs.py).
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

from adapters_store.blobs import OwnedBlobs, is_taken
from adapters_store.errors import AdapterNotFound, StoreCorrupt

logger = logging.getLogger(__name__)


class BlobCache(OwnedBlobs):
    """A folder of versions, bounded in bytes: those used least recently go.

    Several processes may share it. True whenever a `put` has returned: the copies take at most
    `max_bytes` together, or the newest alone takes more. Any copy may go at any time, through
    another process; whoever has its files open keeps them. A copy's last use is its folder's time
    of modification, which all processes see.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        super().__init__(root)
        self._max_bytes = max_bytes

    def find(self, digest: str) -> Path | None:
        """The copy's folder, all of its bytes checked; None if there is no sound one.

        Raises AdapterNotFound only for what is no digest.
        """
        folder = self._folder(digest)
        try:
            self.verified(digest)
            os.utime(folder)
        except (AdapterNotFound, FileNotFoundError):
            return None
        except StoreCorrupt as damaged:  # a power cut, say: copies are not synced one by one
            logger.warning("a copy is dropped, to be fetched again: %s", damaged.message)
            self.delete(digest)
            return None
        return folder

    def put(self, digest: str, package: Path) -> None:
        """Moves a package from staging into place, then drops copies until the bound holds.

        Unlike a store's own files a copy need not be durable: it can be fetched again.
        """
        target = self._folder(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.utime(package)
        try:
            os.rename(package, target)
        except OSError as fault:
            if not is_taken(fault):  # another thread or process was first, with the same bytes
                raise
        self._drop_excess(spared=target)

    def _drop_excess(self, *, spared: Path) -> None:
        copies: list[tuple[int, int, Path]] = []  # last use, bytes, folder
        for folder in self._root.glob("sha256/*/*"):
            with suppress(FileNotFoundError):  # dropped by another process meanwhile
                size = sum(file.stat().st_size for file in folder.iterdir())
                copies.append((folder.stat().st_mtime_ns, size, folder))
        excess = sum(size for _, size, _ in copies) - self._max_bytes
        for _, size, folder in sorted(copies):
            if excess <= 0:
                break
            if folder != spared:
                self.delete(folder.name)
                excess -= size
