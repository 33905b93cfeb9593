"""EVA, AdaLoRA, LoRA+: what each does beside LoRA, and what the server makes of them."""

import json
from pathlib import Path

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

from adapters_store.content import AdapterContent, BaseModel, LinearShape
from server.adapters.methods.lora_config import read_lora
from server.adapters.slot_rows import SlotLimits
from tests.training.methods.tiny import STEPS, attached, make_base, rows, saved, train
from training.methods.lora import low_rank_layers
from training.methods.optimizer import optimizer_groups
from training.methods.trainable import Trainable


@pytest.mark.parametrize(
    "method", ["lora", "rslora", "lora+", "pissa", "eva", "lora-ga", "adalora"]
)
def test_the_server_reads_what_is_saved(method: str, tmp_path: Path) -> None:
    trainable = attached(method)
    train(trainable)
    folder = saved(trainable, tmp_path)
    shapes = {
        path: LinearShape(module.in_features, module.out_features)
        for path, module in make_base().named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    content = AdapterContent(
        "d" * 64,
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    base = BaseModel("tiny", "0" * 64, "LlamaForCausalLM", shapes)
    modules = read_lora(content, base, limits=SlotLimits(slots=1, rows=64, row_bytes=1))
    adapted = dict(low_rank_layers(trainable.model))
    assert {f"base_model.model.{module.name}" for module in modules} == set(adapted)


def test_eva_begins_with_what_the_inputs_vary_in() -> None:
    """The first layer's input is the same for queries, keys and values: its rows span the
    directions of most variance, which an SVD of all learned tokens' inputs gives too."""
    base = make_base()
    inputs = []
    handle = base.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda _, args: inputs.append(args[0])
    )
    with torch.no_grad():
        for batch in rows():
            base(**batch)
    handle.remove()
    learned = torch.cat(
        [one[batch["labels"] != -100] for one, batch in zip(inputs, rows(), strict=True)]
    )
    variance = torch.linalg.svdvals(learned - learned.mean(0)) ** 2
    found = dict(low_rank_layers(attached("eva", base).model))
    layer = found["base_model.model.model.layers.0.self_attn.q_proj"]
    a = layer.lora_A["default"].weight.detach()
    kept = ((learned - learned.mean(0)) @ a.T).square().sum() / variance.sum()
    best = variance[: a.shape[0]].sum() / variance.sum()
    assert kept > 0.9 * best


def test_eva_gives_all_modules_together_the_ranks_asked_for() -> None:
    trainable = attached("eva")
    ranks = [layer.r["default"] for _, layer in low_rank_layers(trainable.model)]
    assert len(set(ranks)) > 1
    assert sum(ranks) == 4 * len(dict(low_rank_layers(attached("lora").model)))


def ranks(trainable: Trainable) -> int:
    layers = dict(low_rank_layers(trainable.model)).values()
    return sum(int(layer.lora_E["default"].count_nonzero()) for layer in layers)


def test_adalora_ends_with_the_ranks_asked_for() -> None:
    trainable = attached("adalora")
    train(trainable, last=1)
    modules = len(dict(low_rank_layers(trainable.model)))
    assert ranks(trainable) == 6 * modules
    train(trainable, first=1, last=STEPS)
    assert ranks(trainable) == 4 * modules


def test_adaloras_penalty_is_no_part_of_an_evaluation() -> None:
    model = attached("adalora").model
    batch = rows()[0]
    with torch.no_grad():
        assert model.eval()(**batch).loss == make_base()(**batch).loss
        assert model.train()(**batch).loss > make_base()(**batch).loss + 0.05


def test_lora_plus_rates_are_pefts() -> None:
    trainable = attached("lora+")
    mine = optimizer_groups(trainable.model, trainable.plan, learning_rate=1e-3, weight_decay=0.1)
    theirs = create_loraplus_optimizer(
        trainable.model,
        torch.optim.AdamW,
        lr=1e-3,
        loraplus_lr_ratio=16,
        loraplus_weight_decay=0.1,
    ).param_groups

    def rates(groups: list) -> dict[int, tuple[float, float]]:
        return {
            id(one): (group["lr"], group["weight_decay"])
            for group in groups
            for one in group["params"]
        }

    assert rates(mine) == rates(theirs)


@pytest.mark.parametrize("method", ["full", "dora", "ia3", "bottleneck", "prompt-tuning"])
def test_what_scales_or_shifts_does_not_decay(method: str) -> None:
    trainable = attached(method)
    names = {id(one): name for name, one in trainable.model.named_parameters()}
    groups = optimizer_groups(trainable.model, trainable.plan, learning_rate=1e-3, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {1e-3}
    spared = [one for group in groups if not group["weight_decay"] for one in group["params"]]
    marks = ("norm", "bias", "magnitude", "ia3_l")
    assert {names[id(one)] for one in spared} == {
        name
        for name, one in trainable.model.named_parameters()
        if one.requires_grad and any(mark in name for mark in marks)
    }
    assert sum(len(group["params"]) for group in groups) == sum(
        one.requires_grad for one in trainable.model.parameters()
    )
