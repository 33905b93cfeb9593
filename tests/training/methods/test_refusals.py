"""What cannot be done is refused by the request's field, with what to do instead."""

import importlib.util
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest
from torch import Tensor

from adapters_store.errors import InvalidRequest
from tests.training.methods.tiny import FAMILY, attached, make_base, plan_of, rows
from training.methods.fields import check_options, default_dropout, default_rank, default_targets
from training.methods.quantized import quantization_config
from training.methods.trainable import attach
from training.plan import AdapterPlan, BaseShape, settle
from training.spec import JobRequest, Options


@pytest.mark.parametrize(
    ("peft", "field"),
    [
        ({"method": "ia3", "trainable_tokens": ("a",)}, "trainable_tokens"),
        ({"method": "ia3", "rank": 8}, "rank"),
        ({"method": "prompt-tuning", "targets": ("q_proj",)}, "targets"),
        ({"method": "p-tuning", "modules_to_save": ("norm",)}, "modules_to_save"),
        ({"method": "lora", "virtual_tokens": 8}, "virtual_tokens"),
        ({"method": "adalora", "trainable_tokens": ("a",)}, "trainable_tokens"),
        ({"method": "bottleneck", "alpha": 8.0}, "alpha"),
        ({"method": "full", "dropout": 0.1}, "dropout"),
    ],
)
def test_a_field_that_the_method_would_ignore(peft: dict, field: str) -> None:
    with pytest.raises(InvalidRequest, match="leave it out, or use one of") as error:
        check_options(Options.model_validate({"peft": peft}))
    assert error.value.param == f"adapterd.peft.{field}"


def test_nothing_said_is_nothing_refused() -> None:
    check_options(Options.model_validate({"peft": {"method": "ia3", "rank": None}}))
    check_options(Options())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"packing": True, "peft": {"method": "prompt-tuning"}}, "packing"),
        ({"gradient_checkpointing": True, "peft": {"method": "prefix-tuning"}},
         "gradient_checkpointing"),
    ],
)  # fmt: skip
def test_options_that_soft_prompts_do_not_go_with(options: dict, field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_options(Options.model_validate(options))
    assert error.value.param == f"adapterd.{field}"


def test_preferences_by_a_method_that_takes_no_reference_beside_it() -> None:
    with pytest.raises(InvalidRequest, match="use lora") as error:
        settled({"type": "dpo"}, method="adalora")
    assert error.value.param == "adapterd.peft.method"
    assert settled({"type": "dpo"}, method="pissa").method == "pissa"


@pytest.mark.parametrize(
    ("method", "more", "field", "remedy"),
    [
        ("ia3", {"trainable_token_ids": (3,)}, "trainable_tokens", "leave it out"),
        ("bottleneck", {"modules_to_save": ("norm",)}, "modules_to_save", "leave it out"),
        ("lora", {"modules_to_save": ("nothing",)}, "modules_to_save", "no module 'nothing'"),
        ("lora", {"modules_to_save": ("q_proj",)}, "modules_to_save", "one of the two"),
        ("lora", {"modules_to_save": ("embed_tokens",), "trainable_token_ids": (3,)},
         "modules_to_save", "adds nothing"),
        ("lora", {"targets": ("nothing",)}, "targets", "no linear module"),
        ("lora", {"targets": ("lm_head",)}, "targets", "modules_to_save"),
        ("pissa", {"rank": 33}, "rank", "lower rank"),
        ("lora-ga", {"rank": 17}, "rank", "lower rank"),
        ("eva", {"rank": 33}, "rank", "lower rank"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_base(
    method: str, more: dict, field: str, remedy: str
) -> None:
    base = make_base()
    with pytest.raises(InvalidRequest, match=remedy) as error:
        attached(method, base, **more)
    assert error.value.param == f"adapterd.peft.{field}"
    assert not hasattr(base, "peft_config")


def test_too_few_steps_for_adalora() -> None:
    with pytest.raises(InvalidRequest, match="use lora") as error:
        attach(make_base(), plan_of("adalora"), seed=0, total_steps=3)
    assert error.value.param == "adapterd.peft.method"


def test_too_few_tokens_for_eva() -> None:
    def one_token() -> Iterator[dict[str, Tensor]]:
        batch = dict(rows()[0])
        batch["labels"] = batch["labels"].clone()
        batch["labels"][:, 1:] = -100
        batch["labels"][0, 0] = 5
        yield batch

    with pytest.raises(InvalidRequest, match="lower rank") as error:
        attach(make_base(), plan_of("eva"), seed=0, total_steps=9, batches=one_token)
    assert error.value.param == "adapterd.peft.rank"


def test_a_prefix_for_layers_that_are_checkpointed() -> None:
    base = make_base()
    base.activation_checkpointing_enable()
    with pytest.raises(InvalidRequest, match="prompt-tuning") as error:
        attached("prefix-tuning", base)
    assert error.value.param == "adapterd.gradient_checkpointing"


def test_a_tied_embedding_that_cannot_be_kept_so() -> None:
    for method, base, name in (
        ("ia3", make_base(tie_word_embeddings=True), "embed_tokens"),
        ("lora", make_base(FAMILY["gpt2"]), "wte"),
    ):
        targets = default_targets("ia3", FAMILY[base.config.model_type].linears)
        with pytest.raises(InvalidRequest, match="shares its weight") as error:
            attached(method, base, modules_to_save=(name,), targets=targets)
        assert error.value.param == "adapterd.peft.modules_to_save"


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_qlora_without_bitsandbytes() -> None:
    with pytest.raises(InvalidRequest, match=r"pip install adapterd\[qlora\]") as error:
        quantization_config(plan_of("qlora"))
    assert error.value.param == "adapterd.peft.method"


def test_data_driven_methods_without_data_are_our_fault() -> None:
    with pytest.raises(ValueError, match="training batches"):
        attach(make_base(), plan_of("eva"), seed=0, total_steps=9)


def settled(by: Mapping[str, str] = MappingProxyType({}), **peft: object) -> AdapterPlan:
    request = JobRequest.model_validate(
        {
            "model": "tiny",
            "training_file": "file-1",
            "method": dict(by),
            "adapterd": {"peft": peft},
        }
    )
    base = BaseShape(width=64, max_tokens=256, linears=FAMILY["llama"].linears)
    return settle(request, seed=0, rows=100, base=base, tokenizer=None).adapter


def test_a_job_is_refused_before_it_is_queued() -> None:
    with pytest.raises(InvalidRequest) as error:
        settled(method="ia3", rank=4)
    assert error.value.param == "adapterd.peft.rank"
    assert settled(method="ia3").targets == ("down_proj", "k_proj", "v_proj")
    assert settled(method="bottleneck").rank == 4
    assert settled(method="qlora").dropout == 0.1
    assert settled(method="qlora", dropout=0.0).dropout == 0.0


def test_defaults() -> None:
    llama, gpt2 = FAMILY["llama"].linears, FAMILY["gpt2"].linears
    assert default_targets("lora", llama) == llama
    assert set(default_targets("ia3", llama)) == {"k_proj", "v_proj", "down_proj"}
    assert set(default_targets("ia3", gpt2)) == {"c_attn", "c_proj"}
    assert default_targets("ia3", ("odd",)) == ("odd",)
    assert (default_rank("lora", 4096), default_rank("bottleneck", 4096)) == (16, 256)
    assert [default_dropout("qlora", width) for width in (5120, 6656)] == [0.1, 0.05]
    assert default_dropout("lora", 5120) == 0.0
