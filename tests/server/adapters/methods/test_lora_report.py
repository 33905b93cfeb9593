import dataclasses

import pytest
import torch

from adapters_store.content import BaseModel, LinearShape
from server.adapters.methods.lora_config import LoraModule
from server.adapters.methods.lora_report import lora_report

WIDE = LinearShape(6, 10)
NAMES = [f"model.layers.{layer}.self_attn.{leaf}" for layer in range(12) for leaf in ("q", "v")]


def module(name: str, rank: int, scale: float, seed: int = 0) -> LoraModule:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 6, generator=draw), torch.randn(10, rank, generator=draw)
    return LoraModule(name, a.to(torch.bfloat16), b, rank, scale)


def base(norm: float | None = 4.0) -> BaseModel:
    norms = {} if norm is None else dict.fromkeys(NAMES, norm)
    return BaseModel("base", "", "Llama", dict.fromkeys(NAMES, WIDE), norms)


def update(one: LoraModule) -> torch.Tensor:
    return one.scale * one.b @ one.a.to(torch.float32)


def test_norms_are_those_of_the_updates_by_layer_in_order():
    modules = [
        module(NAMES[20], 3, 2.0, seed=1),  # layer 10
        module(NAMES[4], 3, -0.5, seed=2),  # layer 2
        module(NAMES[5], 5, 1.5, seed=3),  # layer 2
    ]
    report = lora_report(modules, base())
    assert [one["layer"] for one in report["layers"]] == [2, 10]
    both = torch.cat([update(modules[1]), update(modules[2])])
    for found, wanted, weights in (
        (report["layers"][0], both, (2 * 4.0**2) ** 0.5),
        (report["layers"][1], update(modules[0]), 4.0),
    ):
        norm = float(torch.linalg.vector_norm(wanted))
        assert found["delta_norm"] == pytest.approx(norm, rel=1e-3)
        assert found["relative"] == pytest.approx(norm / weights, rel=1e-3)
    assert (report["ranks"], report["scales"]) == ([3, 5], [-0.5, 1.5, 2.0])
    assert (report["modules"], report["modules_of_base"], report["untouched"]) == (3, 24, [])


def test_what_is_left_alone_is_named():
    assert lora_report([module(NAMES[0], 2, 1.0)], base())["untouched"] == ["v"]


def test_an_update_of_zero_shows_as_zero():
    one = module(NAMES[0], 2, 1.0)
    (layer,) = lora_report([dataclasses.replace(one, b=torch.zeros(10, 2))], base())["layers"]
    assert (layer["delta_norm"], layer["relative"]) == (0.0, 0.0)


def test_without_the_bases_norms_nothing_is_related_to_them():
    (layer,) = lora_report([module("lm_head", 2, 1.0)], base(None))["layers"]
    assert (layer["layer"], layer["relative"]) == ("other", None)
    assert layer["delta_norm"] > 0
