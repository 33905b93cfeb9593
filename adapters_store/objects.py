"""Whole files by keys of theirs, in the store's place beside the versions.

Here: Objects, FolderObjects, RemoteObjects. Not here: which files, and who may have them
(files.py).

    <root>/objects/<key>
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from adapters_store.package import sync_folder
from adapters_store.remote_place import RemotePlace

OBJECTS = "objects"


class Objects(Protocol):
    """Never changed once they are there. A key is of letters, digits, '-', and '/' between parts.

    Each method raises Unavailable while the place cannot be reached.
    """

    def put(self, key: str, file: Path) -> None:
        """Makes a file from the store's staging the object, durable; `file` may be gone after."""
        ...

    def open(self, key: str) -> BinaryIO:
        """To read, from the start. Raises FileNotFoundError."""
        ...

    def remove(self, key: str) -> None:
        """Removes the object if it is there; whoever has it open reads on."""
        ...


class FolderObjects:
    """Objects in a folder on the filesystem that has the store's staging."""

    def __init__(self, root: Path) -> None:
        self._root = root / OBJECTS

    def put(self, key: str, file: Path) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        os.rename(file, target)
        for folder in (target.parent, *target.parent.parents):
            sync_folder(folder)
            if folder == self._root.parent:
                break

    def open(self, key: str) -> BinaryIO:
        return (self._root / key).open("rb")

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError):
            (self._root / key).unlink()


class RemoteObjects:
    """Objects behind an fsspec URL; one that is opened is fetched to a nameless file first."""

    def __init__(self, place: RemotePlace) -> None:
        self._place = place

    def put(self, key: str, file: Path) -> None:
        self._place.refuse_while_away()
        self._place.put(f"{OBJECTS}/{key}", file)

    def open(self, key: str) -> BinaryIO:
        self._place.refuse_while_away()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "object"
            if not self._place.get(f"{OBJECTS}/{key}", copy):
                raise FileNotFoundError(key)
            return copy.open("rb")

    def remove(self, key: str) -> None:
        self._place.refuse_while_away()
        self._place.remove(f"{OBJECTS}/{key}")
