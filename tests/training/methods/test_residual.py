"""PiSSA and LoRA-GA, against PEFT's own, which change the base's weights."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

from tests.training.methods.tiny import attached, logits, make_base, rows, train
from training.methods.lora import low_rank_layers
from training.methods.residual import LORA_GA
from training.methods.trainable import Trainable


def pefts_own(method: str, trainable: Trainable) -> nn.Module:
    """Its model of the same plan, with the residual in the base's weights."""
    base, plan = make_base(), trainable.plan
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.rank,
        lora_alpha=int(plan.alpha),
        target_modules=list(plan.targets),
        init_lora_weights="pissa" if method == "pissa" else "lora_ga",
        lora_ga_config=LoraGAConfig() if method == "lora-ga" else None,
    )
    if method == "lora-ga":
        base.enable_input_require_grads()
        preprocess_loraga(base, config, lambda: [base(**one).loss.backward() for one in rows()])
        base.disable_input_require_grads()
    torch.manual_seed(0)
    return get_peft_model(base, config)


def product(layer: nn.Module) -> torch.Tensor:
    return layer.lora_B["default"].weight @ layer.lora_A["default"].weight


def test_pissa_begins_with_nearly_all_that_its_rank_can_hold() -> None:
    """Of each weight's singular values; the fast SVD is not quite the exact one."""
    for _, layer in low_rank_layers(attached("pissa").model):
        weight = layer.get_base_layer().weight
        least = torch.linalg.svdvals(weight)[4:].norm()
        assert (weight - product(layer)).norm() < 1.02 * least


def test_lora_ga_begins_with_the_gradients_directions() -> None:
    """A holds the first four of them, B the next four, of a gradient taken here by autograd."""
    base = make_base()
    sum(base(**one).loss for one in rows()).backward()
    for path, layer in low_rank_layers(attached("lora-ga").model):
        gradient = base.get_submodule(path.removeprefix("base_model.model.")).weight.grad
        assert gradient is not None
        values = torch.linalg.svdvals(gradient)
        a, b = (getattr(layer, f"lora_{kind}")["default"].weight.data for kind in ("A", "B"))
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-3)
        assert (gradient @ a.T).norm() > 0.98 * values[:4].norm()
        b = b / b.norm(dim=0)
        assert float((gradient.T @ b).norm()) == pytest.approx(float(values[4:8].norm()), rel=0.05)


@pytest.mark.parametrize("method", ["pissa", "lora-ga"])
def test_it_trains_as_pefts_does(method: str) -> None:
    """From the very same factors: the subtraction in the module, and in the weight, are one."""
    mine = attached(method)
    model = pefts_own(method, mine)
    theirs = dict(low_rank_layers(model))
    for path, layer in low_rank_layers(mine.model):
        for kind in ("A", "B"):
            factor = getattr(theirs[path], f"lora_{kind}")["default"].weight.detach()
            getattr(layer, f"lora_{kind}")["default"].weight.data.copy_(factor)
            getattr(layer, f"initial_{kind}").copy_(factor)
    other = Trainable(model, mine.plan, mine.parameters, mine.total)
    assert train(mine) == pytest.approx(train(other), rel=1e-4)
    torch.testing.assert_close(logits(mine.model), logits(model), rtol=1e-2, atol=1e-2)


def test_our_options_are_the_papers_which_peft_has_as_defaults() -> None:
    assert LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=16) == LORA_GA
    assert LoraGAConfig() == LORA_GA


def test_the_reference_is_the_base_in_the_midst_of_training() -> None:
    """What a preference's loss compares with; PEFT's own would give the residual."""
    trainable = attached("pissa")
    model = copy.deepcopy(pefts_own("pissa", trainable)).eval()
    with model.disable_adapter():
        assert not torch.allclose(logits(model), logits(make_base()), atol=0.1)
