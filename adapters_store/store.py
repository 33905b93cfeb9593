"""The store as the HTTP layer sees it: publish, resolve, list, delete, download.

Here: AdapterStore, Published. Not here: HTTP, devices, what a kind of adapter must look like
(the caller's Check says).
"""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import URL

from adapters_store.blob_place import BlobPlace
from adapters_store.catalog import AdapterRecord, Catalog, VersionRecord
from adapters_store.checks import check_tensors
from adapters_store.content import AdapterFacts, Check
from adapters_store.errors import (
    AdapterNotFound,
    Conflict,
    InvalidRequest,
    NameReserved,
    Unavailable,
)
from adapters_store.members import DEFAULT_LIMITS, UploadedFile, UploadLimits
from adapters_store.package import load_package, sync_folder, write_package
from adapters_store.package_zip import write_package_zip
from adapters_store.strict_json import shorten
from adapters_store.upload import receive

__all__ = ["AdapterStore", "Published", "UploadLimits", "UploadedFile"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Published:
    """What an upload came to. `created` is False when the name had this content already."""

    version: VersionRecord
    created: bool
    ignored_files: tuple[str, ...]


class AdapterStore:
    """Names, versions and their files for one base model, in a data directory or by URL.

    Methods block; call them from threads, as many as you like. True throughout: every version in
    the catalog has its files, and what `publish` returned survives kill -9 and a power cut.

    How files and rows stay together: files are moved into place, and removed, only inside a
    catalog write transaction, of which one runs at a time across threads and processes. `publish`
    moves the files before it commits their row; `delete` commits the rows' end first and then, in a
    transaction of its own, removes files that still nobody refers to. So a publish of the same
    content either commits before that look, which then spares the files, or begins after it and
    brings the files again. A crash between leaves at worst files without a row.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        base_name: str,
        limits: UploadLimits = DEFAULT_LIMITS,
        blobs: BlobPlace | None = None,
        catalog: URL | str | None = None,
    ) -> None:
        """Opens the place of the files and the catalog; None: both in `data_dir`.

        Stores with the same catalog must have the same place, and may be on many machines. Raises
        Unavailable, StoreCorrupt, OSError, ValueError (a URL that nothing installed can open).
        """
        self._base_name = base_name
        self._limits = limits
        data_dir.mkdir(parents=True, exist_ok=True)
        self._place = blobs or BlobPlace(str(data_dir / "store"))
        self._blobs = self._place.open()
        sync_folder(data_dir)
        default = URL.create("sqlite", database=str(data_dir / "catalog.sqlite3"))
        try:
            self._catalog = Catalog(catalog or default, base=base_name)
        except BaseException:
            self._blobs.close()
            raise

    @property
    def blob_root(self) -> Path:
        """The folder on this machine that `FolderBlobs` may read: all versions, or copies."""
        return self._place.local

    def probe(self) -> None:
        """Asks the catalog and the files' place for next to nothing.

        Raises Unavailable, naming the one that does not answer.
        """
        self._catalog.list(limit=1, after=None)
        self._blobs.probe()

    def close(self) -> None:
        self._catalog.close()
        self._blobs.close()

    def publish(
        self,
        name: str,
        files: Sequence[UploadedFile],
        *,
        check: Check,
        owner: str = "default",
    ) -> Published:
        """Validates an upload and makes it the name's current version, unless it has it already.

        Content that the name has as an older version is answered with that version; what the
        name means stays as it is. Memory does not grow with the upload: it is streamed, and
        `check` gets memory-mapped tensors. Raises InvalidRequest, NameReserved, InvalidAdapter,
        TooLarge, Conflict (another owner's name), Unavailable (no room on the disk).
        """
        self._check_name(name)
        with _room(), self._blobs.staging() as staging:
            received = receive(files, staging / "upload", self._limits)
            package = staging / "package"
            digest = write_package(received.config, received.weights, package)
            received.weights.unlink()
            facts = _checked(package, digest, check)
            version, created = self._commit(name, digest, package, facts, owner)
        return Published(version, created, received.ignored)

    def resolve(self, reference: str) -> VersionRecord:
        """The version that `name`, `name@<number>` or `name@<digest prefix>` means now.

        A prefix is 8 to 64 hex digits. Raises AdapterNotFound; InvalidRequest if the part after
        @ is neither, or fits several versions.
        """
        name, at, version = reference.partition("@")
        if not at:
            return self.get(name).current
        if not NAME.fullmatch(name):
            raise _not_found(reference)
        if _NUMBER.fullmatch(version):
            found = self._catalog.version(name, int(version))
        elif _DIGEST_PREFIX.fullmatch(version):
            found = self._by_digest(name, version)
        else:
            raise InvalidRequest(
                f"{shorten(version)} names no version; use a number or 8 to 64 hex digits of its "
                "digest"
            )
        if found is None:
            raise _not_found(reference)
        return found

    def get(self, name: str) -> AdapterRecord:
        """Raises AdapterNotFound."""
        # Only a name that could exist reaches the database: others may not even be text to it.
        record = self._catalog.adapter(name) if NAME.fullmatch(name) else None
        if record is None:
            raise _not_found(name)
        return record

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """Oldest first. Raises AdapterNotFound."""
        found = self._catalog.versions(name) if NAME.fullmatch(name) else ()
        if not found:
            raise _not_found(name)
        return found

    def list(
        self, *, limit: int, after: str | None = None
    ) -> tuple[tuple[AdapterRecord, ...], bool]:
        """Up to `limit` adapters by name, those after the name `after`, and whether more follow.

        `after` need not exist any more: a page may follow one whose last adapter was deleted.
        Raises InvalidRequest (param "after") if it is no adapter name.
        """
        if after is not None and not NAME.fullmatch(after):
            raise InvalidRequest(f"{shorten(after)} is no adapter name", param="after")
        found = self._catalog.list(limit=limit + 1, after=after)
        return found[:limit], len(found) > limit

    def delete(self, name: str) -> AdapterRecord:
        """Removes a name and its versions, and the files that no other name shares.

        Returns what it was. Raises AdapterNotFound.
        """
        with self._catalog.write() as writer:
            record = writer.adapter(name) if NAME.fullmatch(name) else None
            if record is None:
                raise _not_found(name)
            digests = writer.digests(name)
            writer.delete_adapter(name)
        with self._catalog.write() as writer:
            for digest in writer.unreferred(digests):
                self._blobs.delete(digest)
        return record

    def write_zip(self, digest: str, out: BinaryIO) -> None:
        """Writes the version as a PEFT zip, the same bytes each time, after checking its files.

        Raises AdapterNotFound, StoreCorrupt, both before the first byte is written.
        """
        package = self._blobs.verified(digest)
        try:
            write_package_zip(package, out, base_name=self._base_name)
        except FileNotFoundError:
            raise _not_found(digest) from None  # deleted since it was checked

    def check(self) -> None:
        """Recounts that every version in the catalog has its files, whole; reads all of them.

        Raises AssertionError, AdapterNotFound, StoreCorrupt.
        """
        for digest in self._catalog.check():
            self._blobs.verified(digest)

    def _by_digest(self, name: str, prefix: str) -> VersionRecord | None:
        matches = self._catalog.versions_by_digest(name, prefix)
        if len(matches) > 1:
            raise InvalidRequest(
                f"{shorten(prefix)} fits several versions of {shorten(name)}; give more digits"
            )
        return matches[0] if matches else None

    def _check_name(self, name: str) -> None:
        if name == self._base_name:
            raise NameReserved(
                f"{shorten(name)} is the base model's name; choose another", param="name"
            )
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"{shorten(name)} is no adapter name: use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
                "starting with a letter or digit",
                param="name",
            )

    def _commit(
        self, name: str, digest: str, package: Path, facts: AdapterFacts, owner: str
    ) -> tuple[VersionRecord, bool]:
        with self._catalog.write() as writer:
            adapter = writer.adapter(name)
            if adapter is not None and adapter.owner != owner:
                raise Conflict(f"the name {shorten(name)} is taken; choose another", param="name")
            known = writer.version_of_digest(name, digest)
            version = known or writer.add_version(name, digest, facts, owner=owner)
            self._blobs.put(digest, package)  # also mends a damaged version that is known
        return version, known is None


@contextmanager
def _room() -> Iterator[None]:
    """Turns a full or read-only disk into Unavailable: what was staged is gone, trying again helps.

    Room may come back without the server's doing, so this is no ServerFault.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise Unavailable(f"the store cannot take the upload now: {fault.strerror}") from fault


def _checked(package: Path, digest: str, check: Check) -> AdapterFacts:
    """The facts, from the stored form; the mapping ends with this call."""
    content = load_package(package, digest)
    check_tensors(content)
    return check(content)


def _not_found(reference: str) -> AdapterNotFound:
    return AdapterNotFound(f"no adapter is named {shorten(reference)}")
