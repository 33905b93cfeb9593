"""What "auto" comes to, and what is refused before anything runs."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import demo
from adapters_store.errors import InvalidRequest
from training.base import BaseFolder
from training.plan import BaseShape, Plan, settle
from training.spec import JobRequest

LINEARS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return BaseFolder("demo", demo.base_path()).tokenizer()


def plan(
    tokenizer: PreTrainedTokenizerBase, rows: int = 1000, width: int = 2000, **fields: Any
) -> Plan:
    request = JobRequest.model_validate({"model": "demo", "training_file": "file-1", **fields})
    base = BaseShape(width, 1024, LINEARS)
    return settle(request, seed=1, rows=rows, base=base, tokenizer=tokenizer)


def hyper(**values: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": values}}


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps"),
    [(10, 4, 25, 75), (200, 4, 6, 300), (1000, 8, 3, 375), (10_000, 32, 3, 939)],
)
def test_batches_and_epochs_grow_with_the_data(
    tokenizer: PreTrainedTokenizerBase, rows: int, batch_size: int, epochs: int, steps: int
) -> None:
    found = plan(tokenizer, rows)
    assert (found.batch_size, found.epochs, found.steps) == (batch_size, epochs, steps)


def test_max_steps_is_what_it_says(tokenizer: PreTrainedTokenizerBase) -> None:
    assert plan(tokenizer, adapterd={"max_steps": 5}).steps == 5
    long = plan(tokenizer, adapterd={"max_steps": 5000})
    assert (long.steps, long.epochs) == (5000, 40)
    both = plan(tokenizer, method=hyper(n_epochs=1), adapterd={"max_steps": 5000})
    assert (both.steps, both.epochs) == (125, 1)


def test_rates_depend_on_the_width_and_the_method(tokenizer: PreTrainedTokenizerBase) -> None:
    assert plan(tokenizer).learning_rate == pytest.approx(5e-4)
    assert plan(tokenizer, width=8000).learning_rate == pytest.approx(5e-4 * 4**-0.775)
    full = plan(tokenizer, adapterd={"peft": {"method": "full"}})
    assert full.learning_rate == pytest.approx(5e-5)
    doubled = plan(tokenizer, method=hyper(learning_rate_multiplier=2.0))
    assert doubled.learning_rate == pytest.approx(1e-3)
    said = plan(tokenizer, adapterd={"learning_rate": 0.25})
    assert said.learning_rate == 0.25
    assert plan(tokenizer, method={"type": "dpo"}).learning_rate == pytest.approx(5e-5)


def test_the_adapters_shape(tokenizer: PreTrainedTokenizerBase) -> None:
    auto = plan(tokenizer).adapter
    assert (auto.method, auto.rank, auto.alpha, auto.targets) == ("lora", 16, 32.0, LINEARS)
    said = plan(tokenizer, adapterd={"peft": {"rank": 4, "targets": ["v_proj", "q_proj"]}}).adapter
    assert (said.rank, said.alpha, said.targets) == (4, 8.0, ("q_proj", "v_proj"))
    scaled = plan(tokenizer, adapterd={"peft": {"method": "rslora", "rank": 64}}).adapter
    assert scaled.alpha == 16.0


@pytest.mark.parametrize(
    ("adapterd", "param", "says"),
    [
        ({"peft": {"targets": ["qkv"]}}, "adapterd.peft.targets", "it has down_proj, gate_proj"),
        (
            {"peft": {"trainable_tokens": ["a word"]}},
            "adapterd.peft.trainable_tokens",
            "not one",
        ),
        (
            {"gradient_accumulation_steps": 3},
            "adapterd.gradient_accumulation_steps",
            "does not divide the batch size 8",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tokenizer: PreTrainedTokenizerBase, adapterd: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as told:
        plan(tokenizer, adapterd=adapterd)
    assert told.value.param == param
    assert says in told.value.message
