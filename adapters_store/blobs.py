"""Versions at rest: a folder per digest, put in place whole or not at all.

Here: Blobs (what a store needs of the place), FolderBlobs (reads; any process), OwnedBlobs (also
writes; the serving process). Not here: names, the catalog, what the files mean, places that are no
folder (remote_blobs.py).

    <root>/sha256/ab/ab…/{adapter_config.json, adapter_model.safetensors}
    <root>/tmp/<process>/<staging>       same filesystem, so that a rename publishes
    <root>/tmp/lock                      held while a process's folder is made or swept
"""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from adapters_store.content import AdapterContent
from adapters_store.errors import AdapterNotFound, StoreCorrupt, Unavailable
from adapters_store.objects import FolderObjects, Objects
from adapters_store.package import load_package, package_digest, sync_folder

DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs(Protocol):
    """Where versions rest, as AdapterStore uses it. Safe from several threads.

    Any method that asks the place raises Unavailable, naming it, while it cannot be reached.
    """

    def staging(self) -> AbstractContextManager[Path]:
        """A new folder on this machine, removed afterwards with what is left in it."""
        ...

    def put_ahead(self, digest: str, package: Path) -> None:
        """Does what takes long in `put`, if anything does, before anybody waits for it.

        What it brings may be gone again when `put` is called, which then brings it anew.
        """
        ...

    def put(self, digest: str, package: Path) -> None:
        """Makes a durable package from staging the version's content; `package` is gone after."""
        ...

    def delete(self, digest: str) -> None:
        """Removes the version if it is there; at no time does half of it show."""
        ...

    def digests(self) -> Iterator[str]:
        """Of all versions at rest, in no order; some may come or go meanwhile."""
        ...

    def verified(self, digest: str) -> Path:
        """A folder with the version's files, all of their bytes checked.

        Raises AdapterNotFound, StoreCorrupt.
        """
        ...

    @property
    def objects(self) -> Objects:
        """Other files that rest in the same place."""
        ...

    def probe(self) -> None:
        """Asks for next to nothing, to see whether the place answers."""
        ...

    def close(self) -> None:
        """Gives up staging; versions stay."""
        ...


class FolderBlobs:
    """Reads versions by digest. Writes nothing, so any process may; safe from several threads.

    An AdapterSource.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, digest: str) -> AdapterContent:
        """The version's content, tensors memory-mapped, after checking all of its bytes.

        Raises AdapterNotFound, StoreCorrupt.
        """
        folder = self.verified(digest)
        try:
            return load_package(folder, digest)
        except FileNotFoundError:
            raise no_version(digest) from None  # deleted since it was checked

    def verified(self, digest: str) -> Path:
        """The version's folder, after checking all of its bytes. Errors as `read`."""
        folder = self._folder(digest)
        while True:
            try:
                held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                raise no_version(digest) from None
            try:
                found = package_digest(folder)
                break
            except FileNotFoundError as missing:
                if _is_still(folder, held):
                    raise StoreCorrupt(f"stored version {digest} lacks a file") from missing
                # deleted under our eyes, and perhaps put again: look anew
            except IsADirectoryError as odd:
                raise StoreCorrupt(f"stored version {digest} has a folder for a file") from odd
            finally:
                os.close(held)
        if found != digest:
            raise StoreCorrupt(f"stored version {digest} now has the digest {found}")
        return folder

    def _folder(self, digest: str) -> Path:
        return self._root / place_of(digest)


class OwnedBlobs(FolderBlobs):
    """Also stages, puts and deletes versions.

    True throughout: a digest's folder is complete or absent, and what `put` returned from is on
    disk. Staging folders of processes that died are removed at start. Whether a version is still
    referred to is the caller's knowledge, as is keeping `put` and `delete` of one digest apart.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        tmp = root / "tmp"
        tmp.mkdir(parents=True, exist_ok=True)
        with _locked(tmp / "lock"):
            _sweep(tmp)
            self._tmp = tmp / uuid.uuid4().hex
            self._tmp.mkdir()
            # Held until `close` or death: how the next process tells our staging from leftovers.
            self._lease = os.open(self._tmp, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lease, fcntl.LOCK_EX)

    def close(self) -> None:
        """Gives up staging; versions stay readable."""
        shutil.rmtree(self._tmp, ignore_errors=True)
        os.close(self._lease)

    @property
    def objects(self) -> FolderObjects:
        return FolderObjects(self._root)

    def probe(self) -> None:
        """Raises Unavailable if the folder is gone, as when what it is mounted from is."""
        try:
            os.stat(self._tmp)
        except OSError as fault:
            raise Unavailable(
                f"the store at {self._root} cannot be read now: {fault.strerror}"
            ) from fault

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A new folder on the store's filesystem, removed afterwards with what is left in it."""
        folder = self._tmp / uuid.uuid4().hex
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_ahead(self, digest: str, package: Path) -> None:
        """Nothing: a rename takes no time."""

    def digests(self) -> Iterator[str]:
        """Of all versions at rest, in no order; some may come or go meanwhile."""
        for folder in (self._root / "sha256").glob("*/*"):
            if DIGEST.fullmatch(folder.name):
                yield folder.name

    def put(self, digest: str, package: Path) -> None:
        """Moves a durable package from staging into place, unless it rests there already.

        A damaged version is replaced: uploading it again is the remedy StoreCorrupt has.
        """
        target = self._folder(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(package, target)
        except OSError as fault:
            if not is_taken(fault):
                raise
            try:
                self.verified(digest)
            except StoreCorrupt:
                self.delete(digest)
                os.rename(package, target)
        # Also when it was there: the process that put it may have died before this.
        for folder in (target.parent, target.parent.parent, self._root):
            sync_folder(folder)

    def delete(self, digest: str) -> None:
        """Removes the version if it is there; at no time does half of it show."""
        target = self._folder(digest)
        trash = self._tmp / uuid.uuid4().hex
        try:
            os.rename(target, trash)
        except FileNotFoundError:
            return
        sync_folder(target.parent)
        shutil.rmtree(trash, ignore_errors=True)


def is_taken(fault: OSError) -> bool:
    """Whether a folder could not be renamed because one with something in it is there already."""
    return fault.errno in (errno.EEXIST, errno.ENOTEMPTY)


def place_of(digest: str) -> str:
    """Where a version lies below the root, here or at a URL. Raises AdapterNotFound."""
    if not DIGEST.fullmatch(digest):
        raise no_version(digest)
    return f"sha256/{digest[:2]}/{digest}"


def no_version(digest: str) -> AdapterNotFound:
    return AdapterNotFound(f"no version {digest[:64]!r} rests in this store")


def _is_still(folder: Path, held: int) -> bool:
    """Whether the path still means the folder that is held open (so its inode is not reused)."""
    try:
        return os.path.samestat(os.stat(folder), os.fstat(held))
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, which the system gives back if the process dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(tmp: Path) -> None:
    """Removes staging folders whose process no longer holds its lock on them."""
    for folder in tmp.iterdir():
        if not folder.is_dir():
            continue
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # a living process's
        finally:
            os.close(handle)
