"""What a plan's leaf names stand for in a base.

Here: targets, check_saved_modules, stores_transposed. Not here: what is done with the modules.
"""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_store.errors import InvalidRequest
from training.plan import AdapterPlan


def targets(base: PreTrainedModel, plan: AdapterPlan) -> dict[str, nn.Linear | Conv1D]:
    """The linear modules that `plan.targets` names, by path. Raises InvalidRequest."""
    head = base.get_output_embeddings()
    found = {
        path: module
        for path, module in base.named_modules()
        if leaf(path) in plan.targets and isinstance(module, nn.Linear | Conv1D)
    }
    missing = set(plan.targets) - {leaf(path) for path in found}
    if missing:
        raise InvalidRequest(
            f"adapterd.peft.targets: the base has no linear module {min(missing)!r}",
            param="adapterd.peft.targets",
        )
    for path, module in found.items():
        if module is head:
            raise InvalidRequest(
                f"adapterd.peft.targets: {leaf(path)!r} is the base's head, which is not adapted; "
                "name it in modules_to_save to train it whole",
                param="adapterd.peft.targets",
            )
    return found


def check_rank(base: PreTrainedModel, plan: AdapterPlan, *, needed: int) -> None:
    """For methods that take `needed` singular vectors of every target. Raises InvalidRequest."""
    for path, module in targets(base, plan).items():
        has = min(module.weight.shape)
        if needed > has:
            raise InvalidRequest(
                f"adapterd.peft.rank: {plan.method} at rank {plan.rank} needs {needed} singular "
                f"vectors, and {path} has {has}; ask for a lower rank, or leave {leaf(path)!r} out "
                "of targets",
                param="adapterd.peft.rank",
            )


def check_saved_modules(base: PreTrainedModel, plan: AdapterPlan) -> None:
    """Raises InvalidRequest if a module to save is none, or is trained in another way too."""
    names = {leaf(path) for path, module in base.named_modules() if list(module.parameters())}
    for name in plan.modules_to_save:
        if name not in names:
            raise _refused(f"the base has no module {name!r}")
        if name in plan.targets:
            raise _refused(f"{name!r} is a target too; name it in one of the two")
    embedding = base.get_input_embeddings()
    path = next(path for path, module in base.named_modules() if module is embedding)
    if leaf(path) in plan.modules_to_save and plan.trainable_token_ids:
        raise _refused(f"{leaf(path)!r} is trained whole, so trainable_tokens adds nothing")


def tied_embedding(base: PreTrainedModel, plan: AdapterPlan) -> bool:
    """Whether a module to save shares its weight with another: both are trained as one."""
    head = base.get_output_embeddings()
    embedding = base.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    shared = {leaf(path) for path, module in base.named_modules() if module in (head, embedding)}
    chosen = shared & set(plan.modules_to_save)
    # Those are the names that PEFT ties; it would train any other's copy beside the head's.
    if chosen - {"embed_tokens", "lm_head"}:
        raise _refused(
            f"{min(chosen)!r} shares its weight with the head, which cannot be kept so here; "
            "train some of its rows with trainable_tokens"
        )
    return bool(chosen)


def _refused(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"adapterd.peft.modules_to_save: {what}", param="adapterd.peft.modules_to_save"
    )


def stores_transposed(modules: Mapping[str, nn.Module]) -> bool:
    """Whether the weights are [in, out], as GPT-2's are: PEFT's fan_in_fan_out."""
    return any(isinstance(module, Conv1D) for module in modules.values())


def leaf(path: str) -> str:
    """ "q_proj" of "model.layers.0.self_attn.q_proj"."""
    return path.rpartition(".")[2]
