"""What an upload is made of, and how much of it is taken.

Here: UploadedFile, Member, UploadLimits, Budget. Not here: archive formats, which names matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from adapters_store.errors import InvalidAdapter, TooLarge

CHUNK_BYTES = 1 << 20  # read and written at a time
MAX_CONFIG_BYTES = 1 << 20  # of an uploaded adapter_config.json
RATIO_FREE_BYTES = 1 << 20  # small files may compress as well as they like


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How large one upload may be."""

    max_upload_bytes: int = 1 << 30  # uncompressed, counted while streaming
    max_members: int = 1000
    max_compression_ratio: int = 200  # uncompressed / compressed, beyond RATIO_FREE_BYTES


DEFAULT_LIMITS = UploadLimits()


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """One file as the client sent it: its name, never trusted, and a seekable stream."""

    name: str
    stream: BinaryIO


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an upload, or a folder if its name ends with "/".

    `name` is what the sender wrote, unchecked. `open` may be called once, before the next member
    is asked for; its reads raise InvalidAdapter if the archive turns out broken.
    """

    name: str
    open: Callable[[], Readable]


class Budget:
    """Counts one upload's uncompressed bytes and members, and stops it at its limits."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._members = 0

    def spend(self, size: int) -> None:
        """Raises TooLarge once the bytes read in all exceed max_upload_bytes."""
        self._bytes += size
        if self._bytes > self._limits.max_upload_bytes:
            raise TooLarge(
                f"the upload holds more than {self._limits.max_upload_bytes} bytes, the limit here"
            )

    def member(self) -> None:
        """Raises InvalidAdapter once there are more than max_members."""
        self._members += 1
        if self._members > self._limits.max_members:
            raise InvalidAdapter(
                f"the upload holds more than {self._limits.max_members} members; "
                "send adapter_config.json and adapter_model.safetensors alone"
            )

    def ratio(self, unpacked: int, packed: int) -> None:
        """Raises InvalidAdapter when `unpacked` bytes came out of implausibly few `packed`."""
        allowed = max(RATIO_FREE_BYTES, packed * self._limits.max_compression_ratio)
        if unpacked > allowed:
            raise InvalidAdapter(
                f"the archive unpacks to over {self._limits.max_compression_ratio} times its "
                "size; send the files uncompressed"
            )
