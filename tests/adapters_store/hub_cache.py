"""A hub's cache as huggingface_hub leaves it on disk: what a server that fetched before finds.

No hub was ever reached from a test: what is tested is our side of the call, and the reading.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_hub_cache(
    cache: Path, repository: str, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The repository's branch `main` at COMMIT, and no way to the hub; its snapshot's folder."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for made in (folder / "blobs", folder / "refs", snapshot):
        made.mkdir(parents=True)
    for name, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / digest).write_bytes(data)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", digest))
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot
