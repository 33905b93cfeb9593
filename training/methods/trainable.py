"""From a plan to a model that can be trained, and from there to an adapter's files.

Here: attach, after_step, without_adapter, save, detach, progress and its return. Not here: any
one method (FAMILIES), the training loop.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.methods.adalora import ADALORA, allocate, allocation, restore_allocation
from training.methods.bottleneck import BOTTLENECK, without_bottlenecks
from training.methods.eva import EVA
from training.methods.family import Batches, Family, Start
from training.methods.fields import check_plan
from training.methods.full import FULL
from training.methods.ia3 import IA3
from training.methods.lora import LORA
from training.methods.quantized import QLORA
from training.methods.residual import LORA_GA_FAMILY, PISSA, initial_factors
from training.methods.soft_prompts import SOFT_PROMPT
from training.plan import AdapterPlan
from training.spec import PeftMethod

FAMILIES: dict[PeftMethod, Family] = {
    "lora": LORA,
    "rslora": LORA,
    "dora": LORA,
    "lora+": LORA,  # its rates are optimizer.py's
    "pissa": PISSA,
    "eva": EVA,
    "lora-ga": LORA_GA_FAMILY,
    "qlora": QLORA,
    "adalora": ADALORA,
    "ia3": IA3,
    "prompt-tuning": SOFT_PROMPT,
    "prefix-tuning": SOFT_PROMPT,
    "p-tuning": SOFT_PROMPT,
    "bottleneck": BOTTLENECK,
    "full": FULL,
}


@dataclass(frozen=True, slots=True)
class Trainable:
    """A base with what a plan adds to it. Only what is trained has requires_grad; it is float32."""

    model: nn.Module  # a PeftModel, or the base itself ("bottleneck", "full")
    plan: AdapterPlan
    parameters: int  # trained
    total: int


def attach(
    base: PreTrainedModel,
    plan: AdapterPlan,
    *,
    seed: int,
    total_steps: int,
    batches: Batches | None = None,
) -> Trainable:
    """What the plan says, around the base, whose own tensors are not changed (but by "full").

    `total_steps`: of the optimizer. `batches`: needed by "eva" and "lora-ga", used by
    "prefix-tuning". The same seed, base and batches give the same model, and torch's random
    numbers go on as if nothing had been attached. Raises InvalidRequest, naming the field.
    """
    check_plan(plan)
    training = base.training
    with _seeded(base.device, seed):
        model = FAMILIES[plan.method].attach(base, plan, Start(total_steps, batches))
    model.train(training)
    trained, total = _count(model)
    return Trainable(model, plan, trained, total)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _count(model: nn.Module) -> tuple[int, int]:
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def after_step(trainable: Trainable, step: int) -> None:
    """To be called after the optimizer's step number `step`, from 0, before zero_grad.

    (Of a Trainer: on_optimizer_step, with its state's global_step.)
    """
    if trainable.plan.method == "adalora":
        assert isinstance(trainable.model, PeftModel)
        allocate(trainable.model, step)


def without_adapter(trainable: Trainable) -> AbstractContextManager[None]:
    """Within it the model gives what its base gives: to compare with, or as a preference's
    reference. Raises ValueError for "full", whose base is gone."""
    if isinstance(trainable.model, PeftModel):
        return trainable.model.disable_adapter()
    if trainable.plan.method == "bottleneck":
        return without_bottlenecks(trainable.model)
    raise ValueError("a full fine-tune has no base to go back to")


def saved_rank(plan: AdapterPlan) -> int:
    """Of the LoRA that `save` writes, at least: PiSSA's and LoRA-GA's also takes back its start."""
    return plan.rank * (2 if plan.method in ("pissa", "lora-ga") else 1)


def save(trainable: Trainable, folder: Path, *, base_name: str) -> None:
    """Writes an ordinary PEFT folder: adapter_model.safetensors, adapter_config.json.

    It fits the unchanged base, tensors are float32, and the same adapter gives the same bytes.
    Methods that differ from LoRA only in how they begin or end are saved as LoRA: pissa and
    lora-ga (of twice the rank), eva and adalora (of the largest rank that they gave), lora+, qlora.
    "full": a whole model's folder instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if trainable.plan.method == "full":
        assert isinstance(trainable.model, PreTrainedModel)
        trainable.model.save_pretrained(folder)
        return
    files = FAMILIES[trainable.plan.method].export(trainable.model, trainable.plan)
    # A copy: tied modules share their memory, which a file cannot.
    tensors = {
        name: files.tensors[name].detach().to("cpu", torch.float32, copy=True).contiguous()
        for name in sorted(files.tensors)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {name: _listed(value) for name, value in files.config.items()}
    config["base_model_name_or_path"] = base_name
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _listed(value: object) -> object:
    """Sets, and lists that were sets, in the order of their names."""
    if isinstance(value, set | list) and all(isinstance(one, str) for one in value):
        return sorted(value)
    return value


def detach(trainable: Trainable) -> PreTrainedModel:
    """The base as it was, with no trace of the adapter; the Trainable is of no use any more.

    After "full" it is what was trained.
    """
    return FAMILIES[trainable.plan.method].detach(trainable.model)


def progress(trainable: Trainable) -> dict[str, Tensor]:
    """All that training has changed, for a checkpoint; PEFT's own files lack some of it.

    (P-tuning's encoder, AdaLoRA's averages and the ranks that it may still give back, what PiSSA
    and LoRA-GA began with.)
    """
    model = trainable.model
    found = {name: one.data for name, one in model.named_parameters() if one.requires_grad}
    found.update(initial_factors(model))
    if trainable.plan.method == "adalora":
        assert isinstance(model, PeftModel)
        found.update(allocation(model))
    return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}


def resume(trainable: Trainable, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `progress` gave, into what the same plan was attached to.

    Raises ValueError if these are another plan's tensors; nothing is changed then.
    """
    model = trainable.model
    own = {name: one.data for name, one in model.named_parameters() if one.requires_grad}
    own.update(initial_factors(model))
    more = {name: one for name, one in tensors.items() if name.startswith("adalora.")}
    given = {name: tuple(one.shape) for name, one in tensors.items() if name not in more}
    if given != {name: tuple(one.shape) for name, one in own.items()}:
        raise ValueError("the checkpoint is of another adapter than this plan's")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    if trainable.plan.method == "adalora":
        assert isinstance(model, PeftModel)
        restore_allocation(model, more)
