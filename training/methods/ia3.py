"""IA3: a factor for every key, value and inner activation of the MLP.

Here: which of a base's modules are rescaled at their output, which at their input. Not here: the
factors (PEFT's). Source: arXiv:2205.05638, section 3.3.
"""

from peft import IA3Config, PeftModel
from torch import nn
from transformers import PreTrainedModel

from adapters_store.errors import InvalidRequest
from training.methods.family import Family, Files, Start
from training.methods.fields import DOWN
from training.methods.modules import (
    check_saved_modules,
    leaf,
    stores_transposed,
    targets,
    tied_embedding,
)
from training.methods.peft_model import peft_files, unwrap, wrap
from training.plan import AdapterPlan


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    check_saved_modules(base, plan)
    if tied_embedding(base, plan):
        raise InvalidRequest(
            "adapterd.peft.modules_to_save: the embedding shares its weight with the head, which "
            "PEFT does not keep so for ia3; use lora, or leave it out",
            param="adapterd.peft.modules_to_save",
        )
    found = targets(base, plan)
    outputs, inputs = _names(tuple(found))
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=sorted(outputs | inputs),
        feedforward_modules=sorted(inputs),
        fan_in_fan_out=stores_transposed(found),
        modules_to_save=list(plan.modules_to_save) or None,
    )
    return wrap(base, config)


def _names(paths: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Names that end the paths of modules rescaled at their output, and at their input.

    Where attention's last module is called as the MLP's is (GPT-2's c_proj), it is left alone, and
    the MLP's goes by two names ("mlp.c_proj").
    """
    outputs, inputs = set(), set()
    for name in {leaf(path) for path in paths}:
        same = [path for path in paths if leaf(path) == name]
        inner = [path for path in same if name in DOWN and not _of_attention(path)]
        if not inner:
            outputs.add(name)
        elif len(inner) == len(same):
            inputs.add(name)
        else:
            inputs.update(".".join(path.split(".")[-2:]) for path in inner)
    return outputs, inputs


def _of_attention(path: str) -> bool:
    return "att" in leaf(path.rpartition(".")[0])


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    return peft_files(model)


IA3 = Family(_attach, _export, unwrap)
