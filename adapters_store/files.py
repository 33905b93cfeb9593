"""Uploaded files, training data above all: a row for each, its bytes beside the adapters' files.

Here: FileShelf, FileRecord. Not here: what is in a file (training/), HTTP.
"""

import hashlib
import re
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sqlalchemy import Row, select

from adapters_store.database import Database
from adapters_store.errors import AdapterdError, FileNotKept, InvalidRequest, StoreCorrupt
from adapters_store.objects import Objects
from adapters_store.paging import by_age
from adapters_store.schema import files
from adapters_store.strict_json import shorten

CHUNK_BYTES = 1 << 20
Order = Literal["asc", "desc"]
_ID = re.compile(r"file-[0-9a-f]{24}")  # another may not even be text to the database


@dataclass(frozen=True, slots=True)
class FileRecord:
    id: str
    owner: str
    filename: str  # as it was uploaded: a label, and no path here
    purpose: str
    bytes: int
    sha256: str
    created_at: int  # Unix seconds


class FileShelf:
    """Files of all bases. Methods block; call them from threads, as many as you like.

    True throughout: a file that has a row has its bytes, and what `add` returned survives kill -9
    and a power cut. Bytes are put before their row is committed, and removed after it is gone.
    """

    def __init__(
        self,
        database: Database,
        objects: Objects,
        staging: Callable[[], AbstractContextManager[Path]],
    ) -> None:
        self._database = database
        self._objects = objects
        self._staging = staging

    def add(
        self, content: BinaryIO, *, filename: str, purpose: str, owner: str = "default"
    ) -> FileRecord:
        """Keeps all that `content` has from where it stands. Raises Unavailable, OSError."""
        file_id = f"file-{uuid.uuid4().hex[:24]}"
        with self._staging() as folder:
            size, digest = _copy(content, folder / "file")
            self._objects.put(_key(file_id), folder / "file")
        record = FileRecord(file_id, owner, filename, purpose, size, digest, int(time.time()))
        values = {column.name: getattr(record, column.name) for column in files.columns}
        try:
            with self._database.write() as connection:
                connection.execute(files.insert().values(values))
        except AdapterdError:
            with suppress(AdapterdError):
                self._objects.remove(_key(file_id))
            raise
        return record

    def get(self, file_id: str) -> FileRecord:
        """Raises FileNotKept."""
        if not _ID.fullmatch(file_id):
            raise _not_kept(file_id)
        with self._database.read() as connection:
            row = connection.execute(select(files).where(files.c.id == file_id)).first()
        if row is None:
            raise _not_kept(file_id)
        return _record(row)

    def list(
        self, *, limit: int, after: str | None = None, purpose: str | None = None, order: Order
    ) -> tuple[tuple[FileRecord, ...], bool]:
        """Up to `limit` by age, those behind the file `after`, and whether more follow.

        Raises InvalidRequest if there is no file `after`.
        """
        last = None
        if after is not None:
            try:
                last = self.get(after)
            except FileNotKept as gone:
                raise InvalidRequest(gone.message, param="after") from None
        query = by_age(files, limit=limit, behind=last, forward=order == "asc")
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with self._database.read() as connection:
            found = tuple(_record(row) for row in connection.execute(query))
        return found[:limit], len(found) > limit

    def delete(self, file_id: str) -> None:
        """Raises FileNotKept; Unavailable, with the file gone but for its bytes."""
        if not _ID.fullmatch(file_id):
            raise _not_kept(file_id)
        with self._database.write() as connection:
            gone = connection.execute(files.delete().where(files.c.id == file_id))
        if not gone.rowcount:
            raise _not_kept(file_id)
        self._objects.remove(_key(file_id))

    def open(self, file_id: str) -> tuple[FileRecord, BinaryIO]:
        """The file and its bytes, to be closed by the caller. Raises FileNotKept, StoreCorrupt."""
        record = self.get(file_id)
        try:
            return record, self._objects.open(_key(file_id))
        except FileNotFoundError:
            self.get(file_id)  # deleted meanwhile, perhaps
            raise StoreCorrupt(
                f"the file {file_id} ({shorten(record.filename)}) is in the catalog, but not in "
                "the store: restore it, or delete it and upload it again"
            ) from None


def _copy(content: BinaryIO, target: Path) -> tuple[int, str]:
    """Bytes copied, and their sha256."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            size += file.write(chunk)
    return size, digest.hexdigest()


def _key(file_id: str) -> str:
    return f"files/{file_id}"


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(**row._mapping)


def _not_kept(file_id: str) -> FileNotKept:
    return FileNotKept(
        f"no file has the id {shorten(file_id)}; GET /v1/files lists what is there", param="file_id"
    )
