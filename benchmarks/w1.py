"""Makes workload W1's files: a random Llama of SmolLM2-135M's shape and adapters for it.

Everything is drawn from seeds and saved once, as ordinary Hugging Face and PEFT folders, so that
every contestant loads the same files. Weights are spread so that each adapter changes the tokens:
otherwise a contestant that answers with the wrong adapter would pass as correct.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.workload import Scenario, adapter_names, number_and_rank

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config() -> LlamaConfig:
    """SmolLM2-135M's shape; nothing ends a sequence early."""
    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )


def prepare(work: Path, scenarios: Sequence[Scenario]) -> None:
    """The scenarios' files in `work`; what is there already stays."""
    base = work / "base"
    names = {name for scenario in scenarios for name in adapter_names(scenario) if name is not None}
    adapters = {name: work / "adapters" / name for name in sorted(names)}
    for folder in [folder for folder in (base, *adapters.values()) if not _complete(folder)]:
        shutil.rmtree(folder, ignore_errors=True)
    if not base.exists():
        _make_base(base)
    missing = [name for name, folder in adapters.items() if not folder.exists()]
    if missing:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        for name in missing:
            number, rank = number_and_rank(name)
            _make_adapter(model, adapters[name], seed=number, rank=rank)


def _complete(folder: Path) -> bool:
    """Weights are moved into place last, so a folder that has them is whole."""
    return any(
        (folder / name).exists() for name in ("model.safetensors", "adapter_model.safetensors")
    )


@torch.no_grad()
def _make_base(folder: Path) -> None:
    """Normal matrices of gain 1 over 1 / sqrt(fan_in); a last norm of either sign.

    A tied head would otherwise read the last token's own embedding back and repeat it.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(config())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.1 if "embed" in name else parameter.shape[1] ** -0.5
            parameter.normal_(std=std)
    model.model.norm.weight.normal_()
    model.bfloat16().save_pretrained(folder)


@torch.no_grad()
def _make_adapter(model: LlamaForCausalLM, folder: Path, *, seed: int, rank: int) -> None:
    """A LoRA on every projection, whose delta is a few tenths of the base's output."""
    torch.manual_seed(seed)
    options = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, options, autocast_adapter_dtype=False)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=parameter.shape[1] ** -0.5 * (0.15 if "lora_B" in name else 1.0))
    wrapped.save_pretrained(str(folder))
    wrapped.unload()
