"""Uploads made by hand, well-formed and not."""

import gzip
import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save

from adapters_store.blobs import Blobs
from adapters_store.content import AdapterContent, AdapterFacts
from adapters_store.members import UploadedFile
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME, write_package

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["v_proj", "q_proj"]}


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "layers.0.q_proj.lora_A.weight": torch.full((4, 8), value),
        "layers.0.q_proj.lora_B.weight": torch.full((8, 4), value, dtype=torch.bfloat16),
    }


def folder(value: float = 1.0, **config: Any) -> dict[str, bytes]:
    """The files of a small adapter; another `value` is another content."""
    return {
        CONFIG_NAME: json.dumps(CONFIG | config).encode(),
        WEIGHTS_NAME: save(tensors(value), {"format": "pt"}),
    }


def put(blobs: Blobs, value: float = 1.0) -> str:
    """Puts a small adapter's files into a place; returns the digest."""
    files = folder(value)
    with blobs.staging() as staging:
        (staging / "upload").write_bytes(files[WEIGHTS_NAME])
        digest = write_package(files[CONFIG_NAME], staging / "upload", staging / "package")
        blobs.put(digest, staging / "package")
    return digest


def uploads(files: Mapping[str, bytes]) -> list[UploadedFile]:
    return [UploadedFile(name, io.BytesIO(data)) for name, data in files.items()]


def archive(data: bytes, name: str = "adapter.zip") -> list[UploadedFile]:
    return [UploadedFile(name, io.BytesIO(data))]


def zipped(files: Mapping[str, bytes] | Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    pairs = list(files.items()) if isinstance(files, Mapping) else files
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        warnings.simplefilter("ignore")  # of names given twice
        for name, data in pairs:
            target.writestr(name, data)
    return out.getvalue()


def tarred(
    files: Mapping[str, bytes] | Sequence[tuple[str | tarfile.TarInfo, bytes]],
    form: int = tarfile.PAX_FORMAT,
) -> bytes:
    """An uncompressed tar; see `gzipped`."""
    out = io.BytesIO()
    pairs = list(files.items()) if isinstance(files, Mapping) else files
    with tarfile.open(fileobj=out, mode="w", format=form) as target:
        for name, data in pairs:
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(data)
            target.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def facts_of(content: AdapterContent) -> AdapterFacts:
    """A Check that finds nothing wrong."""
    size = sum(tensor.nbytes for tensor in content.tensors.values())
    targets = tuple(sorted(content.config["target_modules"]))
    return AdapterFacts(
        "lora", content.config["r"], targets, size, {"tensors": len(content.tensors)}
    )
