"""What the advisor measures, each part beside something independent."""

import io
import json
import math
from random import Random
from typing import Any

import pytest
import torch

import demo
from adapters_store.errors import InvalidDataset
from tests.training.advisor.test_rules import probe
from tests.training.methods.tiny import make_base
from training.advisor.campaign import next_power
from training.advisor.costs import available_bytes, cost, full_bytes, kept_for_backward
from training.advisor.groups import LEAST_ROWS, difference
from training.advisor.measure import RowLosses, paired_error, row_losses, short_answers
from training.advisor.sample import LEAST, Sampled, sampled
from training.advisor.spectrum import before, spectrum
from training.advisor.vocabulary import never_trained, trainable_ids, vocabulary
from training.base import BaseFolder, load_model
from training.evaluation import View, loss
from training.tokens import Tokenized

BASE = BaseFolder("demo", demo.base_path(), "cpu")


def rows(count: int = 9, *, seed: int = 1) -> list[Tokenized]:
    """Of unlike lengths, the first third not learned."""
    rng = Random(seed)
    made = []
    for number in range(count):
        ids = tuple(rng.randrange(10, 199) for _ in range(6 + number))
        made.append(Tokenized(ids, (-100, -100, *ids[2:])))
    return made


def lines(*examples: dict[str, Any]) -> io.BytesIO:
    return io.BytesIO(b"".join(json.dumps(one).encode() + b"\n" for one in examples))


def text(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"The number {number} ", "completion": "is one."} | more


def read(file: io.BytesIO, *, most: int = 1000, held_out: int = 100) -> Sampled:
    return sampled(
        file, BASE.tokenizer(), max_tokens=64, max_examples=most, held_out=held_out, seed=3
    )


def test_row_losses_add_up_to_the_loss() -> None:
    model = make_base()
    asked = rows()
    found = row_losses(View(model.train()), asked)
    assert model.training  # as it was
    model.eval()
    assert found.counts == tuple(row.learned for row in asked)
    assert found.mean == pytest.approx(loss(View(model), asked), rel=1e-5)
    for row, one in zip(asked, found.by_row, strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            alone = model(input_ids=ids, labels=labels).loss.item()
        assert one == pytest.approx(alone, rel=1e-4)


def test_the_paired_error_is_that_of_a_mean_where_rows_are_alike() -> None:
    rng = Random(2)
    gaps = [rng.gauss(0.3, 0.2) for _ in range(50)]
    one = RowLosses(tuple(1.0 + gap for gap in gaps), (1,) * 50)
    other = RowLosses((1.0,) * 50, (1,) * 50)
    mean = sum(gaps) / 50
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 49)
    assert paired_error(one, other) == pytest.approx(deviation / math.sqrt(50))
    assert paired_error(one, one) == 0


def test_a_run_that_diverged_is_never_the_best() -> None:
    assert RowLosses((1.0, math.nan), (1, 1)).mean == math.inf


def test_short_answers() -> None:
    assert short_answers(rows())
    long = Tokenized((5,) * 90, (-100, *(5,) * 89))
    assert not short_answers([long, long, rows()[0]])


def test_never_trained_rows_lie_among_those_of_impossible_bytes() -> None:
    bytes_ = {byte: byte for byte in range(256)}
    embeddings = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * 3
    dead = [*range(0xF5, 0x100), 0xC0, 0xC1, 280, 281]
    embeddings[dead] = 1 + 0.01 * torch.randn(
        len(dead), 16, generator=torch.Generator().manual_seed(1)
    )
    assert never_trained(embeddings, bytes_) == set(dead)
    assert never_trained(embeddings, {}) is None  # nothing to go by


def test_the_demos_vocabulary_has_signs_that_its_text_lacks() -> None:
    tokenizer = BASE.tokenizer()
    embeddings = load_model(BASE).get_input_embeddings().weight
    signs = tuple(tokenizer.encode("#$%&@K{|}~", add_special_tokens=False))
    known = tuple(tokenizer.encode("The train to Oslo leaves.", add_special_tokens=False))
    row = Tokenized(signs + known, signs + known)
    general = [Tokenized(known, known)] * 40
    found = vocabulary(tokenizer, embeddings, [row] * 10, general)
    assert set(found.untrained) == set(signs)
    assert set(found.rare) == set(signs)
    assert set(trainable_ids(found)) == set(signs)
    assert found.untrained_share == pytest.approx(len(signs) / len(signs + known))
    assert (found.unknown_share, found.byte_share) == (0, 0)
    assert found.general_tokens_per_word == pytest.approx(len(known) / 5)
    umlaut = tuple(tokenizer.encode("Grüße", add_special_tokens=False))
    told = vocabulary(tokenizer, embeddings, [Tokenized(umlaut, umlaut)], general)
    assert told.byte_share == pytest.approx(4 / len(umlaut))  # two bytes each


def test_groups_that_differ_and_groups_that_do_not() -> None:
    rng = Random(5)
    groups = ["a", "b"] * 20
    even = [rng.gauss(1, 0.1) for _ in groups]
    found = difference("m", groups, even, None)
    assert found is not None
    assert found.p > 0.05
    uneven = [one + (0.3 if group == "b" else 0) for one, group in zip(even, groups, strict=True)]
    right = [group == "a" for group in groups[:10]]
    told = difference("m", groups, uneven, right)
    assert told is not None
    assert told.p < 0.01
    assert [(name, count, match) for name, count, _, match in told.scores] == [
        ("b", 20, 0.0),
        ("a", 20, 1.0),
    ]
    few = ["a"] * 20 + ["b"] * (LEAST_ROWS - 1) + [None] * 13
    assert difference("m", few, even, None) is None


def test_a_spectrum_tells_the_rank_of_a_change() -> None:
    model = make_base()
    path = "model.layers.0.self_attn.q_proj"
    old = before(model, [path])
    weight = model.get_submodule(path).weight
    assert spectrum(model, old).rank90 == 0
    diverged = {path: torch.full_like(old[path], math.nan)}
    assert spectrum(model, diverged).share >= 0.89
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(weight.shape[0], 3, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(weight.shape[1], 3, generator=generator))
    with torch.no_grad():  # energies 81, 9 and 10 of 100: one holds 81 %, two 91 %
        weight += left @ torch.diag(torch.tensor([9.0, 10**0.5, 3.0])) @ right.T
    found = spectrum(model, old)
    assert (found.rank90, found.width) == (2, min(weight.shape))
    assert found.energy_at[0] == (1, pytest.approx(0.81, abs=1e-3))
    assert found.share == 2 / min(weight.shape)


def test_memory_grows_with_what_is_kept_and_trained() -> None:
    model = make_base().requires_grad_(True).train()
    ids = torch.randint(10, 199, (2, 24), generator=torch.Generator().manual_seed(0))
    small = kept_for_backward(model, {"input_ids": ids, "labels": ids})
    twice = torch.cat([ids, ids])
    large = kept_for_backward(model, {"input_ids": twice, "labels": twice})
    assert 1.8 < large / small < 2.2
    parameters = sum(one.numel() for one in model.parameters())
    assert full_bytes(model, 100) == 20 * parameters + 100
    free = available_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 20


def test_a_jobs_cost() -> None:
    lora = probe("rate", 1.0, parameters=10, activation_bytes=7, seconds_per_step=0.5)
    found = cost(lora, base_bytes=1000, base_parameters=500, steps=300)
    assert (found.bytes, found.seconds, found.adapter_bytes) == (1000 + 10 * 16 + 7, 150.0, 40)
    full = probe("full", 1.0, parameters=500, activation_bytes=7)
    assert cost(full, base_bytes=1000, base_parameters=500, steps=1).bytes == 500 * 16 + 7


def test_a_file_is_split_and_counted() -> None:
    file = lines(*(text(number, group="ab"[number % 2]) for number in range(40)))
    found = read(file)
    assert (len(found.train), len(found.held_out), found.rows) == (32, 8, 40)
    assert set(found.groups) <= {"a", "b"}
    assert found.tokens == sum(len(row.input_ids) for row in found.all)
    assert found.longest == max(len(row.input_ids) for row in found.all)
    assert read(file.__class__(file.getvalue())) == found
    fewer = read(lines(*(text(number) for number in range(40))), most=20)
    assert (len(fewer.all), fewer.rows) == (20, 40)
    assert fewer.groups == (None,) * len(fewer.held_out)


def test_a_file_at_fault_is_told_by_line() -> None:
    good = [text(number) for number in range(20)]
    with pytest.raises(InvalidDataset, match="line 21: the example is"):
        read(lines(*good, text(1, completion="and so on " * 60)))
    with pytest.raises(InvalidDataset, match="line 21: the line is none"):
        read(lines(*good, {"text": "x"}))
    with pytest.raises(InvalidDataset, match=f"has 3 examples; advice takes {LEAST}"):
        read(lines(*good[:3]))
    answer = [{"role": "assistant", "content": "yes"}]
    preference = {
        "input": {"messages": [{"role": "user", "content": "?"}]},
        "preferred_output": answer,
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    with pytest.raises(InvalidDataset, match="dpo"):
        read(lines(*good, preference))


@pytest.mark.parametrize(
    ("losses", "power"),
    [
        ({}, 0),
        ({0: 2.0}, 1),
        ({0: 2.0, 1: 1.0}, 2),
        ({0: 2.0, 1: 3.0}, -1),
        ({0: 2.0, 1: 1.0, 2: 3.0}, None),
        ({0: 2.0, 1: 3.0, -1: 1.0}, -2),
        ({0: 2.0, 1: 3.0, -1: 2.5}, None),
    ],
)
def test_where_a_rate_is_looked_for_next(losses: dict[int, float], power: int | None) -> None:
    assert next_power(losses) == power
