"""The store as the HTTP layer sees it: publish, resolve, list, delete, download.

Here: AdapterStore, Published. Not here: HTTP, devices, what a kind of adapter must look like
(the caller's Check says).
"""

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import URL, Connection

from adapters_store.aliases import CURRENT_TAG, Alias
from adapters_store.aliasing import (
    NAME,
    AliasBook,
    aliases_of,
    compare,
    not_found,
    parse_name,
    release_version,
)
from adapters_store.blob_place import BlobPlace
from adapters_store.catalog import AdapterRecord, Catalog, VersionRecord
from adapters_store.checks import check_tensors
from adapters_store.content import AdapterFacts, Check
from adapters_store.database import Database
from adapters_store.errors import (
    AdapterdError,
    AdapterNotFound,
    AlreadyLoaded,
    Conflict,
    InvalidRequest,
    NameReserved,
    Unavailable,
    VersionInUse,
)
from adapters_store.files import FileShelf
from adapters_store.members import DEFAULT_LIMITS, UploadedFile, UploadLimits
from adapters_store.package import load_package, sync_folder, write_package
from adapters_store.package_zip import write_package_zip
from adapters_store.strict_json import shorten
from adapters_store.upload import receive

__all__ = ["AdapterStore", "Published", "UploadLimits", "UploadedFile"]

GC_BATCH = 100  # versions looked at in one write transaction: others write in between
Within = Callable[[Connection, VersionRecord], None]
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
            database = Database(catalog or default)
        except BaseException:
            self._blobs.close()
            raise
        self.database = database
        self._catalog = Catalog(database, base=base_name)
        self.aliases = AliasBook(self._catalog)
        self.objects = self._blobs.objects
        self.staging = self._blobs.staging
        self.files = FileShelf(database, self.objects, self.staging)

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
        promote: bool = True,
        new: bool = False,
        expected: int | None = None,
        within: Within | None = None,
    ) -> Published:
        """Validates an upload and makes it a version of `name`, unless it has it already.

        The name means it from now on, unless `promote` is false and the name has others. Content
        that the name has as an older version is answered with that version; what the name means
        stays as it is. Memory does not grow with the upload: it is streamed, and
        `check` gets memory-mapped tensors. `within` is called in the transaction that makes the
        version; if it raises, there is none. Raises InvalidRequest, NameReserved, InvalidAdapter,
        TooLarge, Conflict (another owner's name), Unavailable (no room on the disk), with `new`
        AlreadyLoaded if the name is there, and with `expected` AliasMoved if it means another
        version by now (0: if it is there).
        """
        self.check_name(name, new=new)
        with _room(), self._blobs.staging() as staging:
            received = receive(files, staging / "upload", self._limits)
            package = staging / "package"
            digest = write_package(received.config, received.weights, package)
            received.weights.unlink()
            facts = _checked(package, digest, check)
            self._blobs.put_ahead(digest, package)
            try:
                with self._catalog.write() as writer:
                    adapter = writer.adapter(name)
                    if new and adapter is not None:
                        raise _already_loaded(name)  # by someone else, since it was checked
                    if adapter is not None and adapter.owner != owner:
                        taken = f"the name {shorten(name)} is taken; choose another"
                        raise Conflict(taken, param="name")
                    compare(name, CURRENT_TAG, writer.aliases.find(name, CURRENT_TAG), expected)
                    known = writer.version_of_digest(name, digest)
                    version = known or writer.add_version(
                        name, digest, facts, owner=owner, promote=promote
                    )
                    self._blobs.put(digest, package)  # also mends a damaged version that is known
                    if within is not None:
                        within(writer.connection, version)
            except Exception:
                with suppress(AdapterdError):  # what was put ahead is nobody's; gc finds it, too
                    self._remove_unreferred([digest])
                raise
        return Published(version, known is None, received.ignored)

    def resolve(self, reference: str, *, key: str | None = None) -> VersionRecord:
        """The version that `name`, `name:tag`, `name@<number>` or `name@<digest prefix>` means now.

        A prefix is 8 to 64 hex digits. `key` says for whom, where an alias means two versions.
        Raises AdapterNotFound, AliasNotFound; InvalidRequest if the part after @ is neither, or
        fits several versions.
        """
        return self._find(reference).chosen(key)

    def show(self, reference: str) -> VersionRecord:
        """The same, but of an alias that means two versions always the first."""
        return self._find(reference).version

    def get(self, name: str) -> AdapterRecord:
        """Raises AdapterNotFound."""
        # Only a name that could exist reaches the database: others may not even be text to it.
        record = self._catalog.adapter(name) if NAME.fullmatch(name) else None
        if record is None:
            raise not_found(name)
        return record

    def of_number(self, number: int) -> AdapterRecord:
        """The adapter that has this number (AdapterRecord.id). Raises AdapterNotFound."""
        record = self._catalog.adapter_of_id(number)
        if record is None:
            raise AdapterNotFound(f"no adapter has the number {number}")
        return record

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """Oldest first. Raises AdapterNotFound."""
        found = self._catalog.versions(name) if NAME.fullmatch(name) else ()
        if not found:
            raise not_found(name)
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

    def delete(self, name: str, *, force: bool = False) -> AdapterRecord:
        """Removes a name and its versions, and the files that no other name shares.

        Returns what it was. Raises AdapterNotFound, and VersionInUse where it has tags, unless
        `force` is true.
        """
        with self._catalog.write() as writer:
            record = writer.adapter(name) if NAME.fullmatch(name) else None
            if record is None:
                raise not_found(name)
            tags = [f"{name}:{alias.tag}" for alias in writer.aliases.all(name)[1:]]
            if tags and not force:
                raise VersionInUse(
                    f"{name} has the aliases {', '.join(tags)}; remove them first, or force this",
                    param="force",
                )
            digests = [version.digest for version in writer.versions(name)]
            writer.delete_adapter(name)
        self._remove_unreferred(digests)
        return record

    def delete_version(self, name: str, number: int, *, force: bool = False) -> VersionRecord:
        """Removes one version, and its files if no other name shares them; returns what it was.

        Raises AdapterNotFound, and VersionInUse where an alias means it. With `force`, the bare
        name goes to the newest version that is left, a canary's other version takes all, and other
        aliases of it are removed. A name's only version goes with its name: `delete`.
        """
        with self._catalog.write() as writer:
            found = (
                {one.number: one for one in writer.versions(name)} if NAME.fullmatch(name) else {}
            )
            version = found.pop(number, None)
            if version is None:
                raise not_found(f"{name}@{number}")
            users = aliases_of(writer, name, number)
            if not found:
                raise VersionInUse(f"{name} has no other version; delete {name} itself")
            if users and not force:
                raise VersionInUse(
                    f"version {number} of {name} is what {', '.join(users)} means; move that "
                    "first, or force this",
                    param="force",
                )
            release_version(writer, name, number, list(found))
            writer.delete_version(name, number)
        self._remove_unreferred([version.digest])
        return version

    def collect_garbage(self) -> tuple[str, ...]:
        """Removes files of versions that no name has; returns their digests.

        Such are left by a crash between files and row. Safe beside uploads: files are put and
        rows committed in one write transaction, and these are looked for in another.
        """
        removed: list[str] = []
        digests = list(self._blobs.digests())
        for start in range(0, len(digests), GC_BATCH):
            removed += self._remove_unreferred(digests[start : start + GC_BATCH])
        return tuple(removed)

    def verify(self) -> Iterator[tuple[str, AdapterdError | None]]:
        """Reads every version's files again: its digest, and what is wrong with it, if anything."""
        for digest in self._catalog.check():
            try:
                self._blobs.verified(digest)
            except AdapterdError as fault:
                yield digest, fault
            else:
                yield digest, None

    def write_zip(self, digest: str, out: BinaryIO) -> None:
        """Writes the version as a PEFT zip, the same bytes each time, after checking its files.

        Raises AdapterNotFound, StoreCorrupt, both before the first byte is written.
        """
        package = self._blobs.verified(digest)
        try:
            write_package_zip(package, out, base_name=self._base_name)
        except FileNotFoundError:
            raise not_found(digest) from None  # deleted since it was checked

    def check(self) -> None:
        """Recounts that every version in the catalog has its files, whole; reads all of them.

        Raises AssertionError, AdapterNotFound, StoreCorrupt.
        """
        for _, fault in self.verify():
            if fault is not None:
                raise fault

    def _remove_unreferred(self, digests: Sequence[str]) -> tuple[str, ...]:
        with self._catalog.write() as writer:
            removed = writer.unreferred(digests)
            for digest in removed:
                self._blobs.delete(digest)
        return removed

    def _find(self, reference: str) -> Alias:
        """What a reference means; an exact version as an alias of its own."""
        name, at, version = reference.partition("@")
        if not at:
            return self.aliases.get(*parse_name(reference))
        if not NAME.fullmatch(name):
            raise not_found(reference)
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
            raise not_found(reference)
        return Alias(name, version, found)

    def _by_digest(self, name: str, prefix: str) -> VersionRecord | None:
        matches = self._catalog.versions_by_digest(name, prefix)
        if len(matches) > 1:
            raise InvalidRequest(
                f"{shorten(prefix)} fits several versions of {shorten(name)}; give more digits"
            )
        return matches[0] if matches else None

    def check_name(self, name: str, *, new: bool = False) -> None:
        """Before a file is read: raises NameReserved, InvalidRequest, with `new` AlreadyLoaded."""
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
        if new and self._catalog.adapter(name) is not None:
            raise _already_loaded(name)


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


def _already_loaded(name: str) -> AlreadyLoaded:
    return AlreadyLoaded(f"an adapter named {shorten(name)} is there already", param="name")
