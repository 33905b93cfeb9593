"""An adapter's two files on disk, in the one form in which we keep them.

Here: parse_config, write_package, package_digest, load_package. Not here: where packages lie,
uploads, databases.

Both files follow from the digest alone: the config is canonical, the tensors are in canonical
order under a canonical header. So replicas that store the same version store the same bytes, and
a change of any byte is found, also of one that no tensor covers.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import load_file

from adapters_store.content import AdapterContent
from adapters_store.digest import AdapterDigest, canonical_config
from adapters_store.errors import AdapterdError, InvalidAdapter, StoreCorrupt
from adapters_store.members import CHUNK_BYTES, MAX_CONFIG_BYTES
from adapters_store.safetensors_header import canonical_header, read_header
from adapters_store.strict_json import loads

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CANONICAL_BYTES = 8 * MAX_CONFIG_BYTES  # escapes and numbers may be longer in canonical form


def parse_config(data: bytes) -> dict[str, Any]:
    """adapter_config.json as a dict. Raises InvalidAdapter."""
    config = loads(
        data, what=CONFIG_NAME, max_bytes=MAX_CANONICAL_BYTES, max_depth=16, error=InvalidAdapter
    )
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{CONFIG_NAME} is not a JSON object")
    return config


def write_package(config: bytes, weights: Path, folder: Path) -> str:
    """Makes `folder` of an uploaded config and weights file, durable; returns the digest.

    Raises InvalidAdapter if either is malformed. Values of tensors are not looked at.
    """
    canonical = canonical_config(parse_config(config))
    folder.mkdir()
    with weights.open("rb") as source, (folder / WEIGHTS_NAME).open("xb") as target:
        digest = _copy_canonically(source, target, AdapterDigest(canonical))
        _flush(target)
    with (folder / CONFIG_NAME).open("xb") as target:
        target.write(canonical)
        _flush(target)
    sync_folder(folder)
    return digest


def package_digest(folder: Path) -> str:
    """The digest of the package in `folder`, from every byte of it.

    Raises StoreCorrupt if a file is not in canonical form, FileNotFoundError if one is missing.
    """
    config = (folder / CONFIG_NAME).read_bytes()
    with (folder / WEIGHTS_NAME).open("rb") as file:
        try:
            if canonical_config(parse_config(config)) != config:
                raise StoreCorrupt(f"the stored {CONFIG_NAME} is not as it was written")
            return _read_canonically(file, AdapterDigest(config))
        except AdapterdError as bad:
            raise StoreCorrupt(f"stored version {folder.name}: {bad.message}") from bad


def load_package(folder: Path, digest: str) -> AdapterContent:
    """The package's content, its tensors memory-mapped. The caller has checked the digest.

    Raises FileNotFoundError if the package is gone.
    """
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    with (folder / WEIGHTS_NAME).open("rb") as file:
        # load_file opens what it is given more than once: through the handle it is one file each
        # time, even if the package is deleted meanwhile.
        return AdapterContent(digest, config, load_file(f"/dev/fd/{file.fileno()}"))


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries durable: a rename is on disk only after this."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy_canonically(source: BinaryIO, target: BinaryIO, digest: AdapterDigest) -> str:
    header = read_header(source, os.fstat(source.fileno()).st_size)
    found_at = {spec.name: header.data_start + spec.start for spec in header.tensors}
    head, placed = canonical_header(header.tensors)
    target.write(head)
    for spec in placed:
        digest.tensor(spec)
        source.seek(found_at[spec.name])
        for piece in _pieces(source, spec.end - spec.start):
            digest.data(piece)
            target.write(piece)
    return digest.hexdigest()


def _read_canonically(file: BinaryIO, digest: AdapterDigest) -> str:
    header = read_header(file, os.fstat(file.fileno()).st_size)
    head, placed = canonical_header(header.tensors)
    file.seek(0)
    if file.read(header.data_start) != head:
        raise StoreCorrupt(f"the header of the stored {WEIGHTS_NAME} is not as it was written")
    for spec in placed:
        digest.tensor(spec)
        for piece in _pieces(file, spec.end - spec.start):
            digest.data(piece)
    return digest.hexdigest()


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of the file, at most CHUNK_BYTES at a time."""
    while size > 0:
        piece = file.read(min(size, CHUNK_BYTES))
        if not piece:
            raise StoreCorrupt("the file became shorter while it was read")
        size -= len(piece)
        yield piece


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
