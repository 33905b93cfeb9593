"""Reads the members of a .tar.gz as one forward stream, refusing all but files and folders.

Here: tar_gz_members. Not here: which members matter, where they go.

A reader of our own, since the standard library's is not made for strangers' archives: in Python
3.11 it holds whole pax headers in memory, recurses through chains of them, and has had endless
loops on crafted ones (CVE-2024-6232, CVE-2025-8194). What adapters need of the format is small.
Format: POSIX.1-2001 pax interchange, and GNU tar's long names.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from adapters_store.errors import InvalidAdapter
from adapters_store.members import CHUNK_BYTES, Budget, Member
from adapters_store.strict_json import shorten

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20  # a pax header or a GNU long name
_FILE, _FOLDER = (b"0", b"\0"), b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One 512-byte header."""

    name: bytes
    size: int
    kind: bytes


def tar_gz_members(file: BinaryIO, budget: Budget) -> Iterator[Member]:
    """The files and folders of a gzipped tar, each readable until the next is asked for.

    Every byte unpacked spends budget, wanted or not. Raises InvalidAdapter, TooLarge.
    """
    stream = _GzipReader(file, budget)
    pax: dict[bytes, bytes] = {}
    while (entry := _read_header(stream)) is not None:
        budget.member()
        if entry.kind in (_PAX, _LONG_NAME):
            pax |= _read_extension(stream, entry)
        elif entry.kind in (_PAX_GLOBAL, _LONG_LINK):
            _refuse_global_names(_read_extension(stream, entry), entry)
        else:
            yield from _member(stream, entry, pax)
            pax = {}
    stream.drain()


def _member(stream: "_GzipReader", entry: _Entry, pax: dict[bytes, bytes]) -> Iterator[Member]:
    """The member of this header; once it is used, moves the stream behind its data."""
    name = _decoded(pax.get(b"path", entry.name))
    size = _decimal(pax[b"size"]) if b"size" in pax else entry.size
    if entry.kind == _FOLDER:
        name, size = name + "/", 0
    elif entry.kind not in _FILE or any(key.startswith(b"GNU.sparse") for key in pax):
        raise InvalidAdapter(
            f"the tar's member {shorten(name)} is a link, device or sparse file, not a plain file"
        )
    data = _EntryReader(stream, size)
    yield Member(name, lambda: data)
    while data.read(CHUNK_BYTES):
        pass
    stream.take(-size % BLOCK)


def _read_header(stream: "_GzipReader") -> _Entry | None:
    """The next header, or None at the archive's end marker."""
    block = stream.take(BLOCK)
    if not any(block):
        return None
    # The checksum is of the header with its own field as spaces.
    if _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise InvalidAdapter("the tar archive is broken: a header's checksum is wrong")
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0]
    if block[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return _Entry(name, _size(block[124:136]), block[156:157])


def _read_extension(stream: "_GzipReader", entry: _Entry) -> dict[bytes, bytes]:
    """What a pax header or GNU long name says of the member that follows."""
    if entry.size > MAX_EXTENSION_BYTES:
        raise InvalidAdapter(f"the tar archive holds a header over {MAX_EXTENSION_BYTES} bytes")
    data = stream.take(entry.size)
    stream.take(-entry.size % BLOCK)
    if entry.kind == _LONG_NAME:
        return {b"path": data.split(b"\0")[0]}
    return {} if entry.kind == _LONG_LINK else _pax_records(data)


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Records of the form b"<length> <key>=<value>\\n", the length counting all of it."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        length = _decimal(data[at:space]) if space > at else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not record.endswith(b"\n") or at + length > len(data):
            raise InvalidAdapter("the tar archive is broken: a pax header is malformed")
        records[key] = value
        at += length
    return records


def _refuse_global_names(records: dict[bytes, bytes], entry: _Entry) -> None:
    if any(key in (b"path", b"size") or key.startswith(b"GNU.sparse") for key in records):
        raise InvalidAdapter("the tar archive names or sizes all its members in one global header")


def _size(field: bytes) -> int:
    """A header's size: octal text, or GNU's big-endian binary with the top bit set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if digits.translate(None, b"01234567"):
        raise InvalidAdapter("the tar archive is broken: a header's number is malformed")
    return int(digits or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise InvalidAdapter("the tar archive is broken: a pax header's number is malformed")
    return int(digits)


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidAdapter(
            f"the tar's member {name[:80]!r} has a name that is not UTF-8"
        ) from None


class _GzipReader:
    """The tar within the gzip, read forward once; every byte is counted before it is used."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file = file
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._budget = budget
        self._unpacked = 0

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes, at most CHUNK_BYTES or a bounded header of them."""
        parts: list[bytes] = []
        while size > 0:
            parts.append(self.some(size))
            if not parts[-1]:
                raise InvalidAdapter("the tar.gz archive ends early; upload it again whole")
            size -= len(parts[-1])
        return b"".join(parts)

    def some(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end."""
        try:
            data = self._gzip.read(min(size, CHUNK_BYTES))
        except (EOFError, OSError, zlib.error) as bad:
            message = f"the tar.gz archive is broken: {shorten(str(bad))}; upload it again whole"
            raise InvalidAdapter(message) from bad
        self._unpacked += len(data)
        self._budget.spend(len(data))
        self._budget.ratio(self._unpacked, self._file.tell())
        return data

    def drain(self) -> None:
        """Reads what follows the end marker, so that the gzip's checksum is verified."""
        while self.some(CHUNK_BYTES):
            pass


class _EntryReader:
    """The data of one member, `left` bytes of it still to come."""

    def __init__(self, stream: _GzipReader, left: int) -> None:
        self._stream = stream
        self._left = left

    def read(self, size: int, /) -> bytes:
        data = self._stream.take(min(size, self._left, CHUNK_BYTES))
        self._left -= len(data)
        return data
