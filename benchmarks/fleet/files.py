"""Makes a data folder with thousands of small adapters in it, once, and keeps it.

They are published straight into a store, as uploads are after HTTP: the same checks, digests and
syncs. Each is a random LoRA of rank 4 on q and v of W1's base.
"""

import io
import json
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save
from transformers import AutoConfig

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel, LinearShape
from adapters_store.store import AdapterStore, UploadedFile
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits
from server.kernels.backend import rows_for_rank

RANK = 4
TARGETS = ("q_proj", "v_proj")
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
    "target_modules": list(TARGETS),
}  # fmt: skip


def name_of(number: int) -> str:
    return f"fleet-{number:05d}"


def data_folder(work: Path, count: int, base_name: str) -> Path:
    """A --data-dir that holds `count` adapters for the base in `work`; what is missing is added."""
    folder = work / "fleet" / "data"
    shapes = _shapes(work / "base")
    base = BaseModel(base_name, "", "LlamaForCausalLM", shapes)

    def check(content: AdapterContent) -> AdapterFacts:
        return methods.check(content, base, limits=limits)

    limits = SlotLimits(1, rows_for_rank(RANK), row_bytes=1)
    folder.mkdir(parents=True, exist_ok=True)
    store = AdapterStore(folder, base_name=base_name)
    try:
        there = _names(store)
        missing = [number for number in range(count) if name_of(number) not in there]
        for number in track(missing, "making adapters", disable=not missing):
            files = {
                "adapter_config.json": json.dumps(CONFIG).encode(),
                "adapter_model.safetensors": save(_tensors(shapes, number)),
            }
            uploads = [UploadedFile(name, io.BytesIO(data)) for name, data in files.items()]
            store.publish(name_of(number), uploads, check=check)
    finally:
        store.close()
    return folder


def _names(store: AdapterStore) -> set[str]:
    names: set[str] = set()
    after, more = None, True
    while more:
        page, more = store.list(limit=1000, after=after)
        names.update(record.name for record in page)
        after = page[-1].name if page else None
    return names


def _shapes(base: Path) -> dict[str, LinearShape]:
    config = AutoConfig.from_pretrained(base)
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    widths = {"q_proj": hidden, "v_proj": config.num_key_value_heads * head}
    return {
        f"model.layers.{layer}.self_attn.{target}": LinearShape(hidden, widths[target])
        for layer in range(config.num_hidden_layers)
        for target in TARGETS
    }


def _tensors(shapes: dict[str, LinearShape], seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        for part, size in (
            ("lora_A", (RANK, shape.in_features)),
            ("lora_B", (shape.out_features, RANK)),
        ):
            values = torch.randn(size, generator=draw) / 50
            tensors[f"base_model.model.{name}.{part}.weight"] = values.to(torch.bfloat16)
    return tensors
