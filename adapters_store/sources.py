"""Adapters that a client names rather than sends: folders of this machine, a hub's repositories.

Here: Sources, adapter_files. Not here: what makes the files an adapter (AdapterStore.publish).
Nothing outside the roots is opened, and no answer tells what lies there; no hub is asked unless
the operator allowed it.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters_store.errors import AdapterNotFound, InvalidRequest, Unavailable
from adapters_store.members import UploadedFile
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from adapters_store.strict_json import shorten

WANTED = (CONFIG_NAME, WEIGHTS_NAME)  # all that is ever read of a folder or fetched from a hub
ANYWHERE = (Path("/"),)

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# No part begins with a dot: the hub's client makes a path of its cache from it.
_REVISION = re.compile(r"(?=.{1,200}$)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter's files, open, and where they came from."""

    files: tuple[UploadedFile, ...]
    origin: Mapping[str, str]  # {"path"}, or {"hub", "revision"}: the commit that was resolved


class Sources:
    """What clients may name. Methods block, for minutes where a hub is asked: call from threads."""

    def __init__(self, roots: Sequence[Path] = (), *, hub: bool = False) -> None:
        """Folders inside `roots` may be read; with `hub`, repositories of the Hugging Face hub."""
        self._roots = tuple(roots)
        self._hub = hub

    @contextmanager
    def opened(self, source: str, revision: str | None = None) -> Iterator[Opened]:
        """The adapter at `source`, the absolute path of a folder or a hub's `org/name`.

        `revision` is a branch, tag or commit of the hub's. Raises InvalidRequest (param "source"
        or "revision") for what may not be read or is no source, AdapterNotFound if there is no
        adapter, Unavailable if the hub does not answer.
        """
        if os.path.isabs(source):
            if revision is not None:
                raise InvalidRequest(
                    "revision goes with a hub's org/name; leave it out for a folder",
                    param="revision",
                )
            folder, within, origin = self._folder(source), self._roots, {"path": source}
        else:
            folder = self._snapshot(source, revision)
            within = (folder.parent.parent,)  # a snapshot links to the repository's own blobs
            origin = {"hub": source, "revision": folder.name}
        with adapter_files(folder, within=within) as files:
            yield Opened(files, origin)

    def _folder(self, source: str) -> Path:
        if not self._roots:
            raise InvalidRequest(
                "this server reads no folders; upload the adapter's files, or have the server "
                "started with --adapter-root",
                param="source",
            )
        folder = None if "\0" in source else _inside(source, self._roots)
        if folder is None:
            raise _outside()
        if not os.path.isdir(folder):
            raise AdapterNotFound(f"there is no folder {shorten(source)}", param="source")
        return folder

    def _snapshot(self, source: str, revision: str | None) -> Path:
        """The folder of the hub's cache that holds this commit, fetched if need be."""
        if not self._hub:
            raise InvalidRequest(
                f"{shorten(source)} is no absolute path, and this server asks no hub; name a "
                "folder inside --adapter-root, or have the server started with --adapter-hub",
                param="source",
            )
        if not _REPOSITORY.fullmatch(source):
            raise InvalidRequest(
                f"{shorten(source)} is neither an absolute path nor a hub's org/name",
                param="source",
            )
        if revision is not None and not _REVISION.fullmatch(revision):
            raise InvalidRequest(
                f"{shorten(revision)} is no branch, tag or commit of a hub", param="revision"
            )
        return _fetched(source, revision)


@contextmanager
def adapter_files(
    folder: Path, *, within: Sequence[Path] = ANYWHERE
) -> Iterator[tuple[UploadedFile, ...]]:
    """A PEFT folder's two files, open until the block ends; neither lies outside `within`.

    Raises AdapterNotFound if one is missing, InvalidRequest if one is a link that leads elsewhere.
    """
    with ExitStack() as opened:
        yield tuple(
            UploadedFile(name, opened.enter_context(_open(folder / name, within)))
            for name in WANTED
        )


def _open(file: Path, within: Sequence[Path]) -> BinaryIO:
    real = _inside(file, within)
    if real is None:
        raise _outside()
    try:
        # Not a link that took the place of what was just looked at, and no waiting for a pipe.
        handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise _missing(file) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _missing(file)
    return os.fdopen(handle, "rb")


def _inside(path: str | Path, roots: Sequence[Path]) -> Path | None:
    """Where `path` is once every link is followed; None if that is inside no root."""
    real = Path(os.path.realpath(path))
    inside = any(real.is_relative_to(os.path.realpath(root)) for root in roots)
    return real if inside else None


def _fetched(repository: str, revision: str | None) -> Path:
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        DisabledRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = "" if revision is None else f" at {shorten(revision)}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(WANTED)))
    except HFValidationError as error:
        raise InvalidRequest(f"the hub takes no such name: {error}", param="source") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, DisabledRepoError) as error:
        raise AdapterNotFound(
            f"the hub shows this server no {shorten(repository)}{at}", param="source"
        ) from error
    except (OSError, HTTPError) as error:
        raise Unavailable(
            f"the hub did not give {shorten(repository)}{at}: {type(error).__name__}; try again "
            "shortly, or upload the adapter's files"
        ) from error


def _outside() -> InvalidRequest:
    """The same whatever lies there, or if nothing does."""
    return InvalidRequest(
        "this path is not inside a folder that this server may read; name one inside its "
        "--adapter-root",
        param="source",
    )


def _missing(file: Path) -> AdapterNotFound:
    return AdapterNotFound(
        f"the folder holds no readable {file.name}; save the adapter there with PEFT's "
        "save_pretrained",
        param="source",
    )
