"""What of PEFT's LoRA is honoured, and that the rest is refused by name."""

import math
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from adapters_store.content import AdapterContent, BaseModel, LinearShape
from adapters_store.errors import InvalidAdapter, UnsupportedAdapter
from server.adapters.methods import check
from server.adapters.methods.lora_config import HONOURED, INERT, REFUSED, read_lora
from server.adapters.slot_rows import SlotLimits

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
BASE = BaseModel(
    name="tiny",
    digest="0" * 64,
    architecture="LlamaForCausalLM",
    modules={Q: LinearShape(16, 16), V: LinearShape(16, 8)},
)
LIMITS = SlotLimits(slots=1, rows=64, row_bytes=1)


def tensors(rank: int = 4, **ranks: int) -> dict[str, Tensor]:
    """lora_A and lora_B for both modules; `q`, `v` give one of them a rank of its own."""
    out = {}
    for key, module in (("q", Q), ("v", V)):
        r, shape = ranks.get(key, rank), BASE.modules[module]
        out[f"base_model.model.{module}.lora_A.weight"] = torch.ones(r, shape.in_features)
        out[f"base_model.model.{module}.lora_B.weight"] = torch.ones(shape.out_features, r)
    return out


def content(given: dict[str, Tensor] | None = None, **config: Any) -> AdapterContent:
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    return AdapterContent("d" * 64, plain | config, tensors() if given is None else given)


def scales(adapter: AdapterContent) -> dict[str, tuple[int, float]]:
    return {m.name: (m.rank, m.scale) for m in read_lora(adapter, BASE, limits=LIMITS)}


def test_every_option_that_peft_writes_is_known() -> None:
    written = set(peft.LoraConfig(r=4).to_dict())
    assert written <= HONOURED | INERT | set(REFUSED), "peft writes a key that is not decided on"


def test_plain_scale_is_alpha_over_rank() -> None:
    assert scales(content()) == {Q: (4, 2.0), V: (4, 2.0)}


def test_rslora_scale_is_alpha_over_root_of_rank() -> None:
    assert scales(content(use_rslora=True)) == {Q: (4, 4.0), V: (4, 4.0)}


def test_patterns_give_a_module_its_own_rank_and_alpha() -> None:
    adapter = content(tensors(v=2), rank_pattern={"v_proj": 2}, alpha_pattern={f"^{V}": 3})
    assert scales(adapter) == {Q: (4, 2.0), V: (2, 1.5)}
    assert scales(content(tensors(v=2), rank_pattern={"v_proj": 2}, use_rslora=True))[V] == (
        2,
        8 / math.sqrt(2),
    )


def test_the_first_entry_that_names_a_module_counts_as_in_peft() -> None:
    adapter = content(alpha_pattern={"v_proj": 4, "self_attn.v_proj": 12})
    assert scales(adapter)[V] == (4, 1.0)


def test_facts() -> None:
    facts = check(content(), BASE, limits=LIMITS)
    assert (facts.kind, facts.rank, facts.target_modules) == ("lora", 4, ("q_proj", "v_proj"))
    assert facts.bytes == sum(t.nbytes for t in tensors().values())


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_options_not_served_are_refused_by_name(key: str) -> None:
    with pytest.raises(UnsupportedAdapter, match=key):
        check(content(**{key: ["x"]}), BASE, limits=LIMITS)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "VERA"}, "VERA"),
        ({"peft_type": None}, "peft_type"),
        ({"some_new_option": 3}, "some_new_option"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"r": "4"}, "r must be a positive integer"),
        ({"r": True}, "r must be a positive integer"),
        ({"r": 0}, "r must be a positive integer"),
        ({"lora_alpha": 0}, "lora_alpha is 0, so this adapter changes nothing"),
        ({"target_modules": ["q_proj"]}, r"v_proj.*target_modules does not name"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a finite number"),
        ({"alpha_pattern": {".*_proj": 4}}, "is a pattern"),
        ({"alpha_pattern": {"k_proj": 4}}, "names none"),
        ({"alpha_pattern": {"v_proj": "4"}}, "alpha_pattern.v_proj"),
        ({"rank_pattern": {"v_proj": 0}}, "rank_pattern.v_proj"),
        ({"rank_pattern": [1]}, "must be an object"),
    ],
)
def test_bad_configs_name_the_key(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidAdapter, match=says):
        check(content(**config), BASE, limits=LIMITS)


def one_tensor(name: str) -> dict[str, Tensor]:
    return tensors() | {name: torch.ones(4, 16)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "no tensors"),
        (one_tensor("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"), "layers.9"),
        (one_tensor("q_proj.lora_A.weight"), "not named as PEFT names"),
        (one_tensor(f"base_model.model.{Q}.lora_magnitude_vector"), "DoRA"),
        (one_tensor("base_model.model.model.embed_tokens.lora_embedding_A"), "embedding"),
        (
            {k: v for k, v in tensors().items() if "layers.1" not in k or "lora_A" in k},
            "no lora_B beside it",
        ),
        (tensors(q=2), "shape"),
        ({k: v[:, :15] if "q_proj.lora_A" in k else v for k, v in tensors().items()}, "shape"),
        ({k: v * 0 if "lora_B" in k else v for k, v in tensors().items()}, "changes nothing"),
    ],
)
def test_bad_tensors_are_named(given: dict[str, Tensor], says: str) -> None:
    with pytest.raises(InvalidAdapter, match=says):
        check(content(given), BASE, limits=LIMITS)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (SlotLimits(2, 64, 100, max_rank=8), "limit of 8; train with r ≤ 8, .* --max-rank 9$"),
        (SlotLimits(1, 8, 100), "over the 8 rows .* r ≤ 8, .* --slot-bytes 1600 or more$"),
        (SlotLimits(1, 8, 100, max_rank=64), "--slot-bytes 1600 or more$"),
    ],
)
def test_a_rank_that_can_never_fit_names_tensor_and_remedy(limits: SlotLimits, says: str) -> None:
    with pytest.raises(InvalidAdapter, match=f"lora_A.weight' has rank 9, .*{says}"):
        check(content(tensors(9), r=9), BASE, limits=limits)


def test_a_rank_is_as_large_as_the_slots_memory() -> None:
    """However many slots share it, unless the server was told otherwise."""
    assert check(content(tensors(64), r=64), BASE, limits=SlotLimits(8, 64, 100)).rank == 64
