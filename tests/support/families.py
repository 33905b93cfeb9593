"""Tiny random bases, one per architecture family that the engine must serve exactly.

Here: a table of configs and the weights that go with them. The models are transformers' own, saved
as ordinary folders. Sliding windows are shorter than the tests' prompts, heads are grouped where
the family allows it, and every parameter is drawn so that logits are spread: with transformers'
own initialisation a tiny model repeats one token, and a wrong mask would go unseen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 199  # odd, so that nothing is padded to a round number by luck
EOS = 7
GAIN = 2.0  # of matrices, over 1 / sqrt(fan_in)
ATTENTION_GAIN = 1.8  # of query and key norms
LAST_NORMS = ("model.norm.weight", "ln_f.weight", "final_layer_norm.weight")
CONTEXT = 256  # tokens
WINDOW = 18  # tokens; no multiple of a KV block
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
GEMMA = GROUPED | {
    "head_dim": 24,  # not hidden_size / heads, as in the real ones
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture at tiny size, and the leaf names of its linears that an adapter can target.

    `linears` has attention's first, then the MLP's; experts that are no `nn.Linear` are absent.
    """

    name: str
    model_type: str
    config: Mapping[str, Any]
    attention: tuple[str, ...]
    mlp: tuple[str, ...] = ()
    conv1d: bool = False  # weights stored as [in, out]: PEFT's fan_in_fan_out

    @property
    def linears(self) -> tuple[str, ...]:
        return self.attention + self.mlp


def _family(name: str, config: dict[str, Any], *linears: str, model_type: str = "") -> Family:
    return Family(name, model_type or name, config, linears[:4], linears[4:])


LLAMA = _family("llama", GROUPED, *LLAMA_LINEARS)
FAMILIES = (
    LLAMA,
    _family("mistral", GROUPED | {"sliding_window": WINDOW}, *LLAMA_LINEARS),
    _family("qwen2", GROUPED, *LLAMA_LINEARS),
    _family("qwen3", GROUPED | {"head_dim": 24}, *LLAMA_LINEARS),
    _family(
        "gemma2",
        GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0},
        *LLAMA_LINEARS,
    ),
    _family("gemma3", GEMMA, *LLAMA_LINEARS, model_type="gemma3_text"),
    Family(
        "phi3",
        "phi3",
        GROUPED | {"original_max_position_embeddings": CONTEXT},
        ("qkv_proj", "o_proj"),
        ("gate_up_proj", "down_proj"),
    ),
    _family("olmo2", GROUPED, *LLAMA_LINEARS),
    Family(
        "gpt_neox",
        "gpt_neox",
        COMMON
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
            }
        },
        ("query_key_value", "dense"),
        ("dense_h_to_4h", "dense_4h_to_h"),
    ),
    Family(
        "gpt2",
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 112,
            "n_positions": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": EOS,
            "pad_token_id": 0,
        },
        ("c_attn", "c_proj"),
        ("c_fc",),
        conv1d=True,
    ),
    _family(
        "gpt_oss",
        GROUPED
        | {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        *LLAMA_LINEARS[:4],
    ),
    _family(
        "mixtral",
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        *LLAMA_LINEARS[:4],
    ),
)


def make_base(family: Family, folder: Path, *, seed: int = 0) -> Path:
    """Writes the family's tiny base, float32 safetensors, as an ordinary folder. Returns it."""
    config = CONFIG_MAPPING[family.model_type](**family.config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    spread_weights(model, seed)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def spread_weights(model: nn.Module, seed: int) -> None:
    """Redraws every parameter so that greedy tokens depend on context, position and adapter.

    Matrices get a gain over 1/sqrt(fan_in), query and key norms another, so that attention looks
    at a few tokens instead of averaging all; the last norm has weights of either sign, since a
    tied head would otherwise read the last token's own embedding back and repeat it for ever.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        one = 1 + 0.2 * noise
        neutral = parameter.mean()  # of a norm: 1, but 0 for Gemma's, which add the 1 themselves
        if "embed_" in name or "wte" in name or "wpe" in name or "lm_head" in name:
            parameter.copy_(0.4 * noise)
        elif name.endswith("sinks"):
            parameter.copy_(noise)
        elif name.endswith(LAST_NORMS):
            parameter.copy_(noise + neutral - 1)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.copy_(ATTENTION_GAIN * one + neutral - 1)
        elif name.endswith("bias"):
            parameter.copy_(0.2 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(one + neutral - 1)
        else:
            parameter.copy_(GAIN * noise / _fan_in(name, parameter) ** 0.5)


def _fan_in(name: str, weight: torch.Tensor) -> int:
    """Input width of a matrix; stacked experts are [experts, …], Conv1D and experts [in, out]."""
    if weight.ndim == 3:
        return weight.shape[-1]
    return weight.shape[0] if ".c_" in name else weight.shape[-1]
