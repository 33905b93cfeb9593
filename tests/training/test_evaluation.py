"""Scores against their definitions, each computed anew, one row at a time."""

import math

import pytest
import torch

import demo
from training import evaluation
from training.base import BaseFolder, load_model
from training.evaluation import View, answers, divergence, exact_match, f1, loss, score
from training.examples import PromptExample
from training.general_text import SEQUENCES, sample
from training.tokens import NOT_LEARNED, Tokenized, tokenize

BASE = BaseFolder("demo", demo.base_path(), "cpu")
TOKENIZER = BASE.tokenizer()
MODEL = load_model(BASE)


def rows(*pairs: tuple[str, str]) -> list[Tokenized]:
    examples = [PromptExample(prompt=prompt, completion=answer) for prompt, answer in pairs]
    return [tokenize(one, TOKENIZER, max_tokens=200)[0] for one in examples]


ROWS = rows(("Once upon", " a time"), ("The", " old ship sailed away"), ("", "A"), ("x" * 40, "y"))


def log_probs(model: torch.nn.Module, row: Tokenized) -> torch.Tensor:
    """[learned tokens, vocabulary] of one row alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
    wanted = [label != NOT_LEARNED for label in row.labels[1:]]
    return logits[torch.tensor(wanted)].float().log_softmax(-1)


def test_the_loss_is_the_mean_over_learned_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        -log_probs(MODEL, row)[range(len(ids)), ids]
        for row in ROWS
        if (ids := [label for label in row.labels[1:] if label != NOT_LEARNED])
    ]
    expected = torch.cat(parts).mean().item()
    assert loss(View(MODEL), ROWS) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 1)  # a row at a time
    assert loss(View(MODEL), ROWS) == pytest.approx(expected, rel=1e-5)
    assert loss(View(MODEL), []) is None


def test_the_divergence_is_that_of_the_first_from_the_second() -> None:
    other = load_model(BASE)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    parts = []
    for row in ROWS:
        own, base = log_probs(other, row), log_probs(MODEL, row)
        parts.append((own.exp() * (own - base)).sum(-1))
    found = divergence(View(other), View(MODEL), ROWS)
    assert found == pytest.approx(torch.cat(parts).mean().item(), rel=1e-4)
    assert divergence(View(MODEL), View(MODEL), ROWS) == pytest.approx(0.0, abs=1e-6)


def test_answers_are_those_of_each_prompt_alone() -> None:
    asked = rows(
        ("Once upon a", " time"), ("She went", " home"), ("The dog", " ran"), ("It", " is")
    )
    together = answers(View(MODEL), TOKENIZER, asked)
    alone = [answers(View(MODEL), TOKENIZER, [row])[0] for row in asked]
    assert [a[: len(b)] for a, b in zip(together, alone, strict=True)] == alone
    assert any(together)


def test_matches_and_words() -> None:
    said, wanted = ["a b", "a", "", "x y z"], ["a b", "b", "", "y z q r"]
    assert exact_match(said, wanted) == 0.5
    assert f1(said, wanted) == pytest.approx((1 + 0 + 1 + 2 * 2 / 7) / 4)


def test_the_last_answer_of_a_conversation_is_asked_for() -> None:
    row = Tokenized((1, 2, 3, 4, 5, 6), (NOT_LEARNED, 2, NOT_LEARNED, NOT_LEARNED, 5, 6))
    assert evaluation._last_answer(row) == ((1, 2, 3, 4), (5, 6))


def test_all_scores() -> None:
    found = score(View(MODEL), TOKENIZER, ROWS, general=ROWS[:1], answered=2)
    assert found.perplexity == pytest.approx(math.exp(found.eval_loss or 0))
    assert (found.examples, found.tokens) == (4, sum(row.learned for row in ROWS))
    assert found.general_loss == loss(View(MODEL), ROWS[:1])
    assert found.kl_from_base is None
    nothing = score(View(MODEL), TOKENIZER, [], general=[], answered=5)
    assert (nothing.eval_loss, nothing.exact_match, nothing.general_loss) == (None, None, None)


def test_text_of_the_base_is_likely_to_it_and_always_the_same() -> None:
    before = torch.random.get_rng_state()
    drawn = sample(MODEL, TOKENIZER)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn == sample(MODEL, TOKENIZER)
    assert 0 < len(drawn) <= SEQUENCES
    assert len({row.input_ids for row in drawn}) > len(drawn) // 2
    own = loss(View(MODEL), drawn)
    assert own is not None
    assert own < 0.5 * math.log(TOKENIZER.vocab_size)
