"""The frozen base as training has it: transformers' own model and tokenizer, on one device.

Here: BaseFolder, load_model, load_base. Not here: the engine's base, adapters.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from training.plan import BaseShape

FLOAT32_BYTES = 8 << 30
"""On a CPU a base is trained on in float32 if that takes no more: bfloat16 is slower on most."""


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """Where a base lies, and what requests call it."""

    name: str
    folder: Path
    device: str = "auto"  # as --device

    def torch_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With a padding token; which one does not matter, since every batch masks it."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer

    def shape(self) -> BaseShape:
        """What a plan's defaults depend on; from the config alone. Raises OSError, ValueError."""
        config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        head = model.get_output_embeddings()
        leaves = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head
        }
        text = config.get_text_config()
        return BaseShape(text.hidden_size, text.max_position_embeddings, tuple(sorted(leaves)))


def load_model(
    base: BaseFolder,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    quantization: BitsAndBytesConfig | None = None,
) -> Any:
    """The causal LM, frozen, evaluating. Raises OSError."""
    model = load_base(AutoModelForCausalLM, base, dtype, quantization)
    # What a base's folder says of sampling is no matter of training, and clashes with greedy.
    model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    return model


def load_base(
    kind: type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification],
    base: BaseFolder,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    quantization: BitsAndBytesConfig | None = None,
    **config: Any,
) -> Any:
    """The base with the head of its kind, frozen, evaluating; `config` changes what its own says.

    Raises OSError.
    """
    device = base.torch_device()
    model: Any = kind.from_pretrained(
        base.folder,
        dtype=_dtype(base.folder, device) if dtype == "auto" else getattr(torch, dtype),
        quantization_config=quantization,
        device_map=None if quantization is None else {"": device},
        use_safetensors=True,
        local_files_only=True,
        **config,
    )
    if quantization is None:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def _dtype(folder: Path, device: torch.device) -> torch.dtype | str:
    if device.type == "cuda":
        return "auto"
    stored = sum(os.path.getsize(file) for file in folder.glob("*.safetensors"))
    return torch.float32 if 2 * stored <= FLOAT32_BYTES else "auto"
