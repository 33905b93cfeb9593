"""A stored version as a zip that PEFT loads.

Here: write_package_zip. Not here: where versions lie, HTTP.
"""

import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from adapters_store.digest import portable_config
from adapters_store.members import CHUNK_BYTES
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME, parse_config

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: no clock gets in


def write_package_zip(package: Path, out: BinaryIO, *, base_name: str) -> None:
    """Writes the package's files to `out`: the same bytes whenever and wherever it is done.

    Both files are open before the first byte is written; FileNotFoundError if one is missing.
    `out` needs only `write`. Stored, not deflated: weights do not get smaller.
    """
    config = portable_config(parse_config((package / CONFIG_NAME).read_bytes()), base_name)
    with (
        (package / WEIGHTS_NAME).open("rb") as source,
        ZipFile(_WriteOnly(out), "w", ZIP_STORED) as archive,  # type: ignore[arg-type]
    ):
        archive.writestr(_entry(CONFIG_NAME, len(config)), config)
        entry = _entry(WEIGHTS_NAME, os.fstat(source.fileno()).st_size)
        with archive.open(entry, "w") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)


def _entry(name: str, size: int) -> ZipInfo:
    entry = ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix, on whatever system this runs
    entry.external_attr = 0o100644 << 16
    entry.file_size = size  # zipfile decides by it whether the entry needs 64-bit sizes
    return entry


class _WriteOnly:
    """Hides whether `out` can seek: zipfile writes other bytes if it can."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, data: Any) -> int:
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()
