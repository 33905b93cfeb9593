"""Finds the two files that make an adapter in what a client sent, and takes only those.

Here: receive, Received. Not here: what the files say. Writes one file under a name of ours;
never a name from the upload.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapters_store.errors import InvalidAdapter, TooLarge
from adapters_store.members import (
    CHUNK_BYTES,
    MAX_CONFIG_BYTES,
    Budget,
    Member,
    Readable,
    UploadedFile,
    UploadLimits,
)
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from adapters_store.strict_json import shorten
from adapters_store.tar_archive import tar_gz_members
from adapters_store.zip_archive import zip_members

MAX_NAME_CHARS = 1024
_ZIP_MAGIC, _GZIP_MAGIC = b"PK\x03\x04", b"\x1f\x8b"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_WEIGHTS = (*_PICKLED, ".safetensors", ".gguf", ".npz", ".npy", ".h5", ".msgpack", ".onnx")
_TRAINER_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)"
)
_NOISE = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")


@dataclass(frozen=True, slots=True)
class Received:
    """What an upload yields, nothing of it looked into yet."""

    config: bytes  # adapter_config.json
    weights: Path  # adapter_model.safetensors, under the name the caller gave
    ignored: tuple[str, ...]  # harmless files that came along and were not kept


def receive(files: Sequence[UploadedFile], weights: Path, limits: UploadLimits) -> Received:
    """Streams the adapter out of one .zip or .tar.gz, or a PEFT folder's files.

    The weights are written to `weights`, a new file. Raises InvalidAdapter, TooLarge.
    """
    budget = Budget(limits)
    collector = _Collector(weights)
    for member in _members(files, budget):
        collector.add(member)
    return collector.result()


def _members(files: Sequence[UploadedFile], budget: Budget) -> Iterator[Member]:
    """The upload's files, whichever of the three ways they came.

    A file alone is an archive by its content. Among others content says nothing: torch's pickles
    (training_args.bin) are zips, too.
    """
    if not files:
        raise InvalidAdapter("the upload holds no file")
    for file in files:
        file.stream.seek(0)
    if len(files) == 1:
        stream = files[0].stream
        magic = stream.read(4)
        stream.seek(0)
        if magic == _ZIP_MAGIC:
            return zip_members(stream, budget)
        if magic.startswith(_GZIP_MAGIC):
            return tar_gz_members(stream, budget)
        if files[0].name.lower().endswith(_ARCHIVES):
            raise InvalidAdapter(
                f"{shorten(files[0].name)} is by its content no .zip or .tar.gz; pack the PEFT "
                "folder as one of them, or send its files one by one"
            )
    return _plain_files(files, budget)


def _plain_files(files: Sequence[UploadedFile], budget: Budget) -> Iterator[Member]:
    for file in files:
        if len(files) > 1 and file.name.lower().endswith(_ARCHIVES):
            raise InvalidAdapter(
                f"{shorten(file.name)} is an archive among other files; send it alone"
            )
        budget.member()
        yield Member(file.name, lambda file=file: _Counted(file.stream, budget))


class _Counted:
    """A plain file's bytes, counted as they are read."""

    def __init__(self, stream: Readable, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._budget.spend(len(data))
        return data


class _Collector:
    """Takes members one by one; true throughout: no name seen twice, at most one config and one
    weights file, from the same folder."""

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._config: bytes | None = None
        self._seen: set[PurePosixPath] = set()
        self._wanted: dict[str, PurePosixPath] = {}  # leaf name → where it was found
        self._other_weights: list[str] = []
        self._ignored: list[str] = []

    def add(self, member: Member) -> None:
        path = _safe_path(member.name)
        if member.name.endswith("/"):
            return
        if path in self._seen:
            raise InvalidAdapter(f"the upload holds {shorten(str(path))} twice")
        self._seen.add(path)
        if _is_noise(path):
            return
        if path.name in (CONFIG_NAME, WEIGHTS_NAME):
            self._take(member, path)
        elif path.suffix.lower() in _WEIGHTS and not _TRAINER_STATE.fullmatch(path.name):
            self._other_weights.append(str(path))
        else:
            self._ignored.append(str(path))

    def result(self) -> Received:
        """Raises InvalidAdapter unless exactly one adapter was found."""
        if WEIGHTS_NAME not in self._wanted:
            raise InvalidAdapter(self._no_weights())
        if self._other_weights:
            raise InvalidAdapter(
                f"the upload holds {WEIGHTS_NAME} and another file of weights, "
                f"{shorten(self._other_weights[0])}; leave that out"
            )
        if self._config is None:
            raise InvalidAdapter(f"the upload holds no {CONFIG_NAME}")
        return Received(self._config, self._weights, tuple(self._ignored))

    def _no_weights(self) -> str:
        for name in self._other_weights:
            if name.lower().endswith(_PICKLED):
                return (
                    f"{shorten(name)} holds pickled weights, which can run code when read; save "
                    f"the adapter with safe_serialization=True and send {WEIGHTS_NAME}"
                )
        return f"the upload holds no {WEIGHTS_NAME}"

    def _take(self, member: Member, path: PurePosixPath) -> None:
        if path.name in self._wanted:
            raise InvalidAdapter(f"the upload holds more than one {path.name}; send one adapter")
        if len(path.parts) > 2:
            raise InvalidAdapter(f"{shorten(str(path))} lies more than one folder deep")
        if any(other.parent != path.parent for other in self._wanted.values()):
            raise InvalidAdapter(f"{CONFIG_NAME} and {WEIGHTS_NAME} lie in different folders")
        self._wanted[path.name] = path
        if path.name == CONFIG_NAME:
            self._config = self._read_config(member)
        else:
            self._write_weights(member)

    def _read_config(self, member: Member) -> bytes:
        source = member.open()
        data = b""
        while piece := source.read(CHUNK_BYTES):
            data += piece
            if len(data) > MAX_CONFIG_BYTES:
                raise TooLarge(f"{CONFIG_NAME} is over {MAX_CONFIG_BYTES} bytes long")
        return data

    def _write_weights(self, member: Member) -> None:
        source = member.open()
        with self._weights.open("xb") as target:
            while piece := source.read(CHUNK_BYTES):
                target.write(piece)


def _safe_path(name: str) -> PurePosixPath:
    """The relative path that `name` means; anything that could point elsewhere is refused."""
    path = PurePosixPath(name)
    unnamed = not path.parts and not name.endswith("/")  # "./" is a tar's own top folder
    if unnamed or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InvalidAdapter(f"the upload holds a file with an unusable name, {shorten(name)}")
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
        raise InvalidAdapter(
            f"the upload holds a file named {shorten(name)}; names must be relative, with / "
            "between folders and no .. in them"
        )
    return path


def _is_noise(path: PurePosixPath) -> bool:
    """Files that an operating system adds unasked."""
    return "__MACOSX" in path.parts or _NOISE.fullmatch(path.name) is not None
