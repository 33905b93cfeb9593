"""What makes two adapters the same: the canonical form of a config, and the digest over all.

Here: canonical_config, portable_config, AdapterDigest. Not here: files, checks.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from adapters_store.safetensors_header import TensorSpec

NOT_IDENTITY = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
)
"""Config keys that say where an adapter came from or how PEFT last held it, not what it computes.

Everything else stays in, also what matters to training only (lora_dropout): two digests for one
function cost a blob, one digest for two functions would serve the wrong answer.
"""

SET_VALUED = ("exclude_modules", "target_modules")
"""PEFT holds these as sets and writes them in whatever order the process's hash seed gives."""

ORDERED = ("alpha_pattern", "rank_pattern")
"""Where the order of keys means something: the first entry that names a module counts."""

_VERSION = b"adapterd adapter digest 1\n"


def canonical_config(config: Mapping[str, Any]) -> bytes:
    """The config's identity as compact ASCII JSON with sorted keys; stored in this form.

    The entries of patterns keep their order.
    """
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    for key in SET_VALUED:
        value = kept.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            kept[key] = sorted(set(value))
    return _compact(kept)


def portable_config(config: Mapping[str, Any], base_name: str) -> bytes:
    """A config that PEFT loads elsewhere: the stored one, naming the base it was served with."""
    return _compact({**config, "base_model_name_or_path": base_name, "inference_mode": True})


def _compact(value: Mapping[str, Any]) -> bytes:
    parts = [
        f"{json.dumps(key)}:{_dumps(value[key], sort_keys=key not in ORDERED)}"
        for key in sorted(value)
    ]
    return ("{" + ",".join(parts) + "}").encode("ascii")


def _dumps(value: Any, *, sort_keys: bool) -> str:
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False)


class AdapterDigest:
    """sha256 over a canonical config and tensors, fed in canonical order, piece by piece.

    Every part is preceded by its length or implies it, so that no two adapters feed the same
    bytes: version line, config length and bytes, then per tensor its (name, dtype, shape) as
    JSON with length, and exactly the data that dtype and shape need.
    """

    def __init__(self, config: bytes) -> None:
        self._hash = hashlib.sha256(_VERSION)
        self._due = 0  # data bytes the current tensor still needs
        self._feed(config)

    def tensor(self, spec: TensorSpec) -> None:
        """Begins the next tensor; its data follows through `data`."""
        assert self._due == 0, "the tensor before is incomplete"
        self._feed(json.dumps([spec.name, spec.dtype, spec.shape]).encode("ascii"))
        self._due = spec.end - spec.start

    def data(self, piece: bytes | memoryview) -> None:
        self._due -= len(piece)
        assert self._due >= 0, "more data than the tensor has"
        self._hash.update(piece)

    def hexdigest(self) -> str:
        """64 lower-case hex digits."""
        assert self._due == 0, "the last tensor is incomplete"
        return self._hash.hexdigest()

    def _feed(self, part: bytes) -> None:
        self._hash.update(len(part).to_bytes(8, "little"))
        self._hash.update(part)
