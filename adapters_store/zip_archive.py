"""Reads the members of a .zip, refusing what no adapter needs: links, encryption, odd methods.

Here: zip_members. Not here: which members matter, where they go.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from adapters_store.errors import InvalidAdapter
from adapters_store.members import Budget, Member
from adapters_store.strict_json import shorten

MAX_DIRECTORY_BYTES = 4 << 20  # zipfile reads the whole central directory at once
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_FAULTS = (BadZipFile, RuntimeError, ValueError, EOFError, struct.error, zlib.error)


def zip_members(file: BinaryIO, budget: Budget) -> Iterator[Member]:
    """The files and folders of a seekable zip, each readable until the next is asked for.

    What is read spends budget; members nobody opens cost nothing. Raises InvalidAdapter, TooLarge.
    """
    with _zip_faults(), ZipFile(_BoundedReads(file)) as archive:  # type: ignore[arg-type]
        for entry in archive.infolist():
            budget.member()
            _check_entry(entry)
            yield Member(entry.orig_filename, lambda entry=entry: _open(archive, entry, budget))


def _open(archive: ZipFile, entry: ZipInfo, budget: Budget) -> "_EntryReader":
    with _zip_faults():
        return _EntryReader(archive.open(entry), entry.compress_size, budget)


def _check_entry(entry: ZipInfo) -> None:
    name = shorten(entry.orig_filename)
    if entry.flag_bits & _ENCRYPTED:
        raise InvalidAdapter(f"the zip's member {name} is encrypted; zip it without a password")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InvalidAdapter(f"the zip's member {name} is a link or device, not a file")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise InvalidAdapter(
            f"the zip's member {name} uses compression method {entry.compress_type}; "
            "use deflate or none"
        )


@contextmanager
def _zip_faults() -> Iterator[None]:
    """Turns what zipfile raises on broken archives into InvalidAdapter."""
    try:
        yield
    except _FAULTS as bad:
        raise InvalidAdapter(f"the zip archive is broken: {shorten(str(bad))}") from bad


class _BoundedReads:
    """A file that answers no single read of more than MAX_DIRECTORY_BYTES.

    zipfile believes the archive about its directory's size and makes objects of all of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_DIRECTORY_BYTES + 1 if size < 0 else size)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise BadZipFile("its directory is too large")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:
            raise BadZipFile("a member lies before the start of the file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class _EntryReader:
    """One member's bytes, counted; stops at an implausible compression ratio."""

    def __init__(self, stream: IO[bytes], packed: int, budget: Budget) -> None:
        self._stream = stream
        self._packed = packed
        self._unpacked = 0
        self._budget = budget

    def read(self, size: int, /) -> bytes:
        with _zip_faults():
            data = self._stream.read(size)
        self._unpacked += len(data)
        self._budget.spend(len(data))
        self._budget.ratio(self._unpacked, self._packed)
        return data
