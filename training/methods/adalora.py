"""AdaLoRA: ranks are taken from modules that need them less while training goes on.

Here: its schedule, the step that must follow each of the optimizer's, its plain form. Not here:
the allocation itself (PEFT's).

Source: arXiv:2303.10512: B E A with E diagonal; the budget begins at 1.5 times what it ends with,
stays so for a tenth of the steps and is final for the last half (about the shares of its GLUE
runs), beta 0.85, orthogonality weighs 0.1.
"""

from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_store.errors import InvalidRequest
from training.methods.family import Family, Files, Start
from training.methods.lora import Update, detached, low_rank_layers, plain_lora, shared_fields
from training.methods.peft_model import ADAPTER, unwrap, wrap
from training.plan import AdapterPlan

INITIAL_SHARE = 1.5
ORTHOGONALITY = 0.1
LEAST_STEPS = 4
"""Fewer leave no room for its phases."""


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    steps = start.total_steps
    if steps < LEAST_STEPS:
        raise InvalidRequest(
            f"adapterd.peft.method: adalora needs {LEAST_STEPS} steps to allocate ranks, and this "
            f"job makes {steps}; use lora, or train for longer",
            param="adapterd.peft.method",
        )
    config = AdaLoraConfig(
        init_r=max(plan.rank + 1, round(INITIAL_SHARE * plan.rank)),
        target_r=plan.rank,
        tinit=steps // 10,
        tfinal=steps // 2,
        deltaT=max(1, steps // 100),
        total_step=steps,
        orth_reg_weight=ORTHOGONALITY,
        **shared_fields(base, plan),
    )
    model = wrap(base, config)
    _tuner(model).register_forward_pre_hook(_regularise_while_training)
    return model


def _regularise_while_training(tuner: Any, _: Any) -> None:
    """PEFT adds the penalty to every loss; an evaluation's is of the text alone."""
    tuner.peft_config[ADAPTER].orth_reg_weight = ORTHOGONALITY if tuner.training else 0.0


def allocate(model: PeftModel, step: int) -> None:
    """After the optimizer's step number `step`, from 0, and before its gradients are zeroed."""
    _tuner(model).update_and_allocate(step)


def allocation(model: PeftModel) -> dict[str, Tensor]:
    """What the allocator knows of the steps so far; by name, for a checkpoint."""
    averages = _averages(model)
    found = {
        f"adalora.{kind}.{name}": tensor
        for kind, tensors in averages.items()
        for name, tensor in tensors.items()
    }
    config: Any = model.peft_config[ADAPTER]
    for name, kept in (config.rank_pattern or {}).items():
        found[f"adalora.kept.{name}"] = torch.tensor(kept)
    return found


def restore_allocation(model: PeftModel, tensors: dict[str, Tensor]) -> None:
    """Goes on from what `allocation` gave."""
    averages = _averages(model)
    allocator = _tuner(model).rankallocator
    parameters = dict(_tuner(model).model.named_parameters())
    pattern = {}
    for key, tensor in tensors.items():
        kind, _, name = key.removeprefix("adalora.").partition(".")
        if kind == "kept":
            pattern[name] = tensor.tolist()
        else:
            averages[kind][name] = tensor.to(parameters[name].device)
            allocator.ipt[name] = torch.zeros_like(averages[kind][name])  # PEFT's mark of a known
    config: Any = model.peft_config[ADAPTER]
    config.rank_pattern = pattern or None


def _averages(model: PeftModel) -> dict[str, dict[str, Tensor]]:
    allocator = _tuner(model).rankallocator
    return {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}


def _tuner(model: PeftModel) -> AdaLoraModel:
    assert isinstance(model.base_model, AdaLoraModel)
    return model.base_model


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    assert isinstance(model, PeftModel)
    updates = {path: _learned(layer) for path, layer in low_rank_layers(model)}
    config: Any = model.peft_config[ADAPTER]
    pattern, config.rank_pattern = config.rank_pattern, None  # by which PEFT would cut its tensors
    try:
        return plain_lora(model, updates)
    finally:
        config.rank_pattern = pattern


def _learned(layer: Any) -> Update:
    """B E A as a LoRA, without the ranks that were taken away."""
    a, b, e = (part[ADAPTER] for part in (layer.lora_A, layer.lora_B, layer.lora_E))
    kept = e.detach().flatten() != 0
    # PEFT's forward divides by ranknum + 1e-5
    scale = layer.scaling[ADAPTER] / (float(layer.ranknum[ADAPTER]) + 1e-5)
    return Update(detached(a * e)[kept], detached(b)[:, kept], scale)


ADALORA = Family(_attach, _export, unwrap)
