"""A random base of Llama 3.1 8B's shape in bfloat16, and rank-16 adapters for it, as ordinary
Hugging Face and PEFT folders.

Drawn on the GPU from seeds, and written a layer at a time: about 16 GB, and 84 MB an adapter.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.w1 import PROJECTIONS
from benchmarks.workload import RANK

DTYPE = torch.bfloat16
LORA_B_GAIN = 0.15  # so that an adapter's update is a few tenths of the base's output
FINISHED = "finished"  # a file that is written last: a folder that has it is whole


def config() -> LlamaConfig:
    """Llama 3.1 8B's shape; nothing ends a sequence early."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        dtype="bfloat16",
    )


def prepare(work: Path, adapters: list[str], device: torch.device) -> None:
    """`work`/base and `work`/adapters/NAME; what is whole already stays."""
    _write_base(work / "base", config(), device)
    for seed, name in enumerate(adapters):
        _write_adapter(work / "adapters" / name, config(), seed, device)


def _write_base(folder: Path, shape: LlamaConfig, device: torch.device) -> None:
    if (folder / FINISHED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape.save_pretrained(folder)
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for number, part in enumerate(_base_parts(shape, generator)):
        file = f"model-{number:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
        total += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / FINISHED).touch()


def _base_parts(shape: LlamaConfig, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Embeddings, each layer, the head: what one file holds."""
    hidden, vocab = shape.hidden_size, shape.vocab_size
    yield {"model.embed_tokens.weight": _normal(vocab, hidden, 0.1, generator)}
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        part = {
            prefix + name + ".weight": _normal(out, width, width**-0.5, generator)
            for name, (out, width) in projections(shape).items()
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            part[f"{prefix}{norm}.weight"] = torch.ones(hidden, dtype=DTYPE)
        yield part
    yield {
        "model.norm.weight": torch.ones(hidden, dtype=DTYPE),
        "lm_head.weight": _normal(vocab, hidden, hidden**-0.5, generator),
    }


def _write_adapter(folder: Path, shape: LlamaConfig, seed: int, device: torch.device) -> None:
    if (folder / FINISHED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
    ).save_pretrained(str(folder))
    generator = torch.Generator(device).manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(shape.num_hidden_layers):
        for name, (out, width) in projections(shape).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}."
            gain = LORA_B_GAIN * RANK**-0.5
            tensors[prefix + "lora_A.weight"] = _normal(RANK, width, width**-0.5, generator)
            tensors[prefix + "lora_B.weight"] = _normal(out, RANK, gain, generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / FINISHED).touch()


def projections(shape: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of a layer's linears by name, all of which adapters target."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv = hidden // shape.num_attention_heads * (shape.num_key_value_heads or 1)
    sizes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {f"self_attn.{name}_proj": size for name, size in sizes.items()} | {
        f"mlp.{name}_proj": size for name, size in mlp.items()
    }


def _normal(rows: int, columns: int, std: float, generator: torch.Generator) -> Tensor:
    """[rows, columns] in host memory, drawn where the generator is."""
    drawn = torch.empty(rows, columns, dtype=DTYPE, device=generator.device)
    return drawn.normal_(std=std, generator=generator).cpu()
