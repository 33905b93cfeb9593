"""An AdapterSource over PEFT folders on disk, for engines that run without a store."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file

from adapters_store.content import AdapterContent
from adapters_store.errors import AdapterNotFound


class FolderSource:
    """Reads folders that peft's save_pretrained wrote; `digests` maps their names to digests."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.digests = {name: _digest(folder) for name, folder in folders.items()}
        self._folders = {self.digests[name]: folder for name, folder in folders.items()}

    def read(self, digest: str) -> AdapterContent:
        """Raises AdapterNotFound for a digest that is none of the folders'."""
        if digest not in self._folders:
            raise AdapterNotFound(f"No adapter has the digest {digest}.")
        folder = self._folders[digest]
        config = json.loads((folder / "adapter_config.json").read_text())
        return AdapterContent(digest, config, load_file(folder / "adapter_model.safetensors"))


def _digest(folder: Path) -> str:
    """Stands in for the store's digest: 64 hex digits that tell contents apart."""
    files = ("adapter_config.json", "adapter_model.safetensors")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()
