"""A real store with small PEFT adapters in it."""

import io
import json
from pathlib import Path

import torch
from safetensors.torch import save

from adapters_store.catalog import VersionRecord
from adapters_store.content import AdapterFacts
from adapters_store.store import AdapterStore, UploadedFile

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
}
FACTS = AdapterFacts("lora", 4, ("q_proj",), 256, {"matched": 1})


def adapter_files(seed: int = 0) -> dict[str, bytes]:
    """A PEFT folder's files; another seed, another content."""
    generator = torch.Generator().manual_seed(seed)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(4, 8, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(8, 4, generator=generator),
    }
    return {
        "adapter_config.json": json.dumps(CONFIG).encode(),
        "adapter_model.safetensors": save(tensors),
    }


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """The same as a folder on disk."""
    folder.mkdir(parents=True)
    for name, data in adapter_files(seed).items():
        (folder / name).write_bytes(data)
    return folder


def make_store(folder: Path, *, base: str) -> AdapterStore:
    return AdapterStore(folder, base_name=base)


def publish(store: AdapterStore, name: str) -> VersionRecord:
    """An adapter of this name, unlike that of any other name."""
    seed = int.from_bytes(name.encode()[:6])
    files = [UploadedFile(file, io.BytesIO(data)) for file, data in adapter_files(seed).items()]
    return store.publish(name, files, check=lambda content: FACTS).version
