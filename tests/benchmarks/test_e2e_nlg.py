"""The E2E NLG benchmark in miniature: train, serve, ask, compare, score. Needs the data set."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.e2e_nlg import evaluate, train
from benchmarks.e2e_nlg.bleu import score
from benchmarks.e2e_nlg.data import (
    DataMissing,
    Facts,
    data_folder,
    development,
    sample_of_test_set,
)
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import COMMON, Family, make_base

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CHAT = (
    "{% for message in messages %}{{ '<|user|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIALS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")


@pytest.fixture
def data() -> Path:
    try:
        return data_folder()
    except DataMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def base(tmp_path: Path) -> tuple[Family, Path]:
    """A tiny Llama over bytes, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    llama = Family(
        "llama",
        "llama",
        COMMON
        | {
            "vocab_size": len(vocab),
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("gate_proj", "up_proj", "down_proj"),
    )
    folder = make_base(llama, tmp_path / "base")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT,
    ).save_pretrained(folder)
    return llama, folder


def test_end_to_end(base: tuple[Family, Path], data: Path, tmp_path: Path):
    family, folder = base
    trained = train.train(folder, data, tmp_path / "adapter", train.Plan(steps=12, rows=4))
    others = {
        recipe.name: make_adapter(folder, family, recipe, tmp_path / recipe.name, seed=1)
        for recipe in RECIPES[:2]
    }
    plan = evaluate.Plan(folder, tmp_path / "adapter", others, rows=8, max_tokens=24, threads=1)
    report = evaluate.evaluate(plan, sample_of_test_set(data, plan.rows, seed=plan.seed))
    evaluate.write(report, tmp_path / "results")
    assert trained.held_out_loss > 0
    assert report.exact, report.agreement
    assert {name: one.asked for name, one in report.agreement.items()} == {
        "e2e-nlg": 8, "base": 8, "all": 4, "attention-rs": 4,
    }  # fmt: skip
    assert (tmp_path / "results" / "e2e_nlg.json").stat().st_size > 0
    assert "| e2e-nlg | 8 | 8 |" in (tmp_path / "results" / "e2e_nlg.md").read_text()


def test_split_shares_no_mr_and_is_seeded(data: Path):
    split = development(data, seed=3)
    assert not {one.mr for one in split.train} & {one.mr for one in split.held_out}
    assert split == development(data, seed=3)
    assert split != development(data, seed=4)


def test_absent_data_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ADAPTERD_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="ADAPTERD_DATA"):
        data_folder()


def test_bleu_takes_the_best_of_several_references():
    facts = [
        Facts("a", ("one two three four five", "no match at all here")),
        Facts("b", ("six seven eight nine ten",)),
    ]
    perfect = score(["one two three four five", "six seven eight nine ten"], facts)
    assert perfect.bleu == 100
    assert score(["nothing to see", "nor here"], facts).bleu < 5
