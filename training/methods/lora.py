"""LoRA and what differs from it by a flag of PEFT's config only.

Here: lora, rslora, dora, lora+ (its rates are optimizer.py's), and the config and the plain form
that other low-rank methods share. Not here: initialisations from weights or data.

Sources: LoRA arXiv:2106.09685 (alpha, and A random, B zero); rsLoRA arXiv:2312.03732 (scale
alpha / sqrt(r)); DoRA arXiv:2402.09353 (a magnitude for each output); LoRA+ arXiv:2402.12354.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.methods.family import Family, Files, Start
from training.methods.modules import (
    check_saved_modules,
    stores_transposed,
    targets,
    tied_embedding,
)
from training.methods.peft_model import peft_files, unwrap, wrap
from training.plan import AdapterPlan


def shared_fields(base: PreTrainedModel, plan: AdapterPlan) -> dict[str, Any]:
    """The fields of PEFT's config that every low-rank method has. Raises InvalidRequest."""
    check_saved_modules(base, plan)
    return {
        "task_type": "CAUSAL_LM" if plan.task == "generation" else "SEQ_CLS",
        "lora_alpha": whole(plan.alpha),
        "lora_dropout": plan.dropout,
        "target_modules": sorted(plan.targets),
        "fan_in_fan_out": stores_transposed(targets(base, plan)),
        "bias": "none",
        "modules_to_save": list(plan.modules_to_save) or None,
        "trainable_token_indices": list(plan.trainable_token_ids) or None,
        "ensure_weight_tying": tied_embedding(base, plan),
    }


def lora_config(base: PreTrainedModel, plan: AdapterPlan, **more: Any) -> LoraConfig:
    """PEFT's config of a plan. Raises InvalidRequest if the base has not what it names."""
    return LoraConfig(r=plan.rank, **shared_fields(base, plan), **more)


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    flags = {"use_rslora": plan.method == "rslora", "use_dora": plan.method == "dora"}
    return wrap(base, lora_config(base, plan, **flags))


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    return peft_files(model)


LORA = Family(_attach, _export, unwrap)


@dataclass(frozen=True, slots=True)
class Update:
    """One module's: x ↦ scale · (x Aᵀ) Bᵀ."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float


def low_rank_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's LoraLayers, by path in the PeftModel, which is how their tensors are named.

    Typed as Any: PEFT's layers are modules by a second base class, which their types do not say.
    """
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def plain_lora(model: nn.Module, updates: Mapping[str, Update]) -> Files:
    """The model's adapter as a LoRA of these updates, with one rank and one whole alpha throughout.

    Servers differ in what they make of a rank or alpha for each module, or do not read them at
    all; so smaller ranks are filled up with zeros, which cost room and change nothing, and scales
    that one alpha cannot say are multiplied into B.
    """
    files = peft_files(model)
    rank = max(1, *(update.a.shape[0] for update in updates.values()))
    alpha = _one_alpha([update.scale for update in updates.values()], rank)
    tensors = {name: one for name, one in files.tensors.items() if ".lora_" not in name}
    for path, update in updates.items():
        missing = rank - update.a.shape[0]
        b = update.b if alpha is not None else update.b * update.scale
        tensors[f"{path}.lora_A.weight"] = nn.functional.pad(update.a, (0, 0, 0, missing))
        tensors[f"{path}.lora_B.weight"] = nn.functional.pad(b, (0, missing))
    kept = ("target_modules", "modules_to_save", "trainable_token_indices", "fan_in_fan_out")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=files.config["lora_dropout"],
        ensure_weight_tying=files.config["ensure_weight_tying"],
        **{name: _listed(files.config[name]) for name in kept},
    )
    return Files(tensors, config.to_dict())


def _one_alpha(scales: list[float], rank: int) -> int | None:
    alpha = whole(scales[0] * rank)
    same = math.isclose(min(scales), max(scales), rel_tol=1e-9)
    return alpha if same and isinstance(alpha, int) else None


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def whole(alpha: float) -> int | float:
    """As an int where it is one, which is all that some servers take."""
    nearest = round(alpha)
    return nearest if math.isclose(alpha, nearest, rel_tol=1e-9) else alpha


def detached(tensor: Tensor) -> Tensor:
    """A float32 copy that training does not change."""
    return tensor.detach().to(torch.float32, copy=True)
