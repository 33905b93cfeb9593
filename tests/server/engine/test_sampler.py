"""Sampling: distributions as stated, and a row that depends on its own sequence alone."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.messages import SamplingParams
from server.engine.plan import Chunk
from server.engine.sampler import _penalised, _top_k_top_p, sample
from server.engine.sequence import Sequence

VOCAB = 12
LOGITS = torch.linspace(-2, 2, VOCAB)
DRAWS = 3000


def sequence(
    seed: int = 0,
    prompt: tuple[int, ...] = (1,),
    output: tuple[int, ...] = (),
    drafted: tuple[int, ...] = (),
    stops: frozenset[int] = frozenset(),
    **s: Any,
) -> Chunk:
    """The last token of a sequence, or of what is drafted for it, as a chunk of one."""
    sampling = SamplingParams(**({"max_tokens": 5} | s))
    tokens = [*prompt, *output]
    one = Sequence("r", 0, len(prompt), tokens, sampling, None, seed, 0.0, stop_ids=stops)
    return Chunk(one, len(tokens) + len(drafted) - 1, 1, drafted)


def draws(count: int = DRAWS, logits: Tensor = LOGITS, **sampling: Any) -> Counter[int]:
    rows = [sequence(seed, **sampling) for seed in range(count)]
    out = sample(logits.expand(count, -1), rows)
    return Counter(token.token_id for token in out.tokens if token is not None)


def greedy(logits: Tensor, one: Chunk) -> int:
    (token,) = sample(logits.unsqueeze(0), [one]).tokens
    assert token is not None
    return token.token_id


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    found = draws(temperature=temperature)
    expected = (LOGITS / temperature).softmax(0)
    for token in range(VOCAB):
        p = float(expected[token])
        sigma = (p * (1 - p) / DRAWS) ** 0.5
        assert abs(found[token] / DRAWS - p) < 5 * sigma + 1e-9, token


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(draws(top_k=3)) == {9, 10, 11}


def test_top_p_keeps_the_smallest_set_of_that_mass() -> None:
    mass = LOGITS.softmax(0).flip(0).cumsum(0)
    kept = int((mass < 0.6).sum()) + 1
    assert set(draws(top_p=0.6)) == set(range(VOCAB - kept, VOCAB))
    assert set(draws(top_p=1e-9)) == {VOCAB - 1}


def test_min_p_keeps_what_is_likely_beside_the_likeliest() -> None:
    p = LOGITS.softmax(0)
    assert set(draws(min_p=0.5)) == {i for i in range(VOCAB) if p[i] >= 0.5 * p.max()}


def test_a_draw_does_not_depend_on_batch_mates() -> None:
    rows = [sequence(seed, temperature=t) for seed, t in enumerate([0.0, 0.7, 1.0, 1.3])]
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    together = sample(logits, rows).tokens
    alone = [sample(logits[i : i + 1], rows[i : i + 1]).tokens[0] for i in range(4)]
    assert list(together) == alone


def test_the_seed_and_the_position_fix_the_draw() -> None:
    flat = torch.zeros(5000)
    first = greedy(flat, sequence(7))
    assert greedy(flat, sequence(7)) == first
    assert greedy(flat, sequence(8)) != first
    assert greedy(flat, sequence(7, output=(3,))) != first


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0, "repetition_penalty": 1.5},
        {"temperature": 1.0, "frequency_penalty": 2.0, "presence_penalty": -1.0},
        {"temperature": 0.0, "min_tokens": 2, "logprobs": 3},
    ],
)
def test_what_is_drafted_is_as_good_as_said(sampling: dict[str, Any]) -> None:
    sampling |= {"stops": frozenset({VOCAB - 1})}
    said = sequence(9, (1, 2), (3, 3, 11), **sampling)
    drafted = sequence(9, (1, 2), (3,), (3, 11), **sampling)
    fewer = sequence(9, (1, 2), (3,), **sampling)
    first, same, other = sample(LOGITS.expand(3, -1), [said, drafted, fewer]).tokens
    assert first == same
    assert other != same


def test_temperature_zero_takes_the_largest() -> None:
    assert draws(50, temperature=0.0) == {VOCAB - 1: 50}


def test_repetition_penalty_reads_prompt_and_output() -> None:
    logits = torch.tensor([3.0, 2.0, -1.0, 1.0])
    assert greedy(logits, sequence(prompt=(0,), temperature=0.0, repetition_penalty=2.0)) == 1
    both = sequence(prompt=(0,), output=(1,), temperature=0.0, repetition_penalty=10.0)
    assert greedy(logits, both) == 3


def test_presence_and_frequency_read_output_only() -> None:
    logits = torch.tensor([3.0, 2.5, 0.0])
    assert greedy(logits, sequence(prompt=(0,), temperature=0.0, presence_penalty=1.0)) == 0
    once = sequence(output=(0,), temperature=0.0, presence_penalty=1.0)
    assert greedy(logits, once) == 1
    counted = sequence(output=(0, 1, 1), temperature=0.0, frequency_penalty=0.4)
    assert greedy(logits, counted) == 0


def test_min_tokens_holds_back_what_would_end_it() -> None:
    logits = torch.tensor([1.0, 5.0, 4.0])
    stops = frozenset({1, 2})
    assert greedy(logits, sequence(stops=stops, temperature=0.0, min_tokens=1)) == 0
    long_enough = sequence(output=(0,), stops=stops, temperature=0.0, min_tokens=1)
    assert greedy(logits, long_enough) == 1


def test_logprobs_are_of_the_model_before_temperature_and_penalties() -> None:
    one = sequence(temperature=0.0, logprobs=2, repetition_penalty=2.0, prompt=(VOCAB - 1,))
    (token,) = sample(LOGITS.unsqueeze(0), [one]).tokens
    expected = LOGITS.log_softmax(0)
    assert token is not None
    assert token.token_id == VOCAB - 2
    assert token.logprob == pytest.approx(float(expected[VOCAB - 2]))
    assert [t for t, _ in token.top_logprobs] == [VOCAB - 1, VOCAB - 2]
    assert token.top_logprobs[0][1] == pytest.approx(float(expected[VOCAB - 1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_yields_no_token_and_harms_no_other(bad: float) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[0, 3] = bad
    rows = [sequence(temperature=0.0, logprobs=1), sequence(temperature=0.0)]
    poisoned, well = sample(logits, rows).tokens
    assert poisoned is None
    assert well is not None
    assert well.token_id == VOCAB - 1


def test_a_mask_of_minus_infinity_is_no_fault() -> None:
    logits = LOGITS.clone()
    logits[VOCAB - 1] = float("-inf")
    assert greedy(logits, sequence(temperature=0.0)) == VOCAB - 2


MIXED: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 4},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 0},
    {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"temperature": 0.9, "top_k": 7, "logprobs": 2},
    {"temperature": 1.1, "top_p": 0.7, "min_p": 0.01, "frequency_penalty": -0.5},
    {"temperature": 1.5, "top_k": 500, "top_p": 0.95, "stops": frozenset({3, 5}), "min_tokens": 9},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_on_what_they_want(dtype: torch.dtype) -> None:
    draw = random.Random(0)
    rows = [
        sequence(
            -seed,
            tuple(draw.choices(range(60), k=20)),
            tuple(draw.choices(range(60), k=draw.randrange(12))),
            **MIXED[seed % len(MIXED)],
        )
        for seed in range(42)
    ]
    logits = 3 * torch.randn(42, 60, generator=torch.Generator().manual_seed(0))
    logits = logits.to(dtype)  # in bfloat16 several are equal
    before = logits.clone()
    together = sample(logits, rows).tokens
    alone = [sample(logits[i : i + 1], rows[i : i + 1]).tokens[0] for i in range(42)]
    assert list(together) == alone
    assert torch.equal(logits, before), "logits are the caller's"


@pytest.mark.parametrize("top_k", [1, 3, 30, 60])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1.0])
def test_what_is_kept_is_the_beginning_of_a_stable_order(top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 60, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    logits[3] = 0.0  # all alike
    logits[4, 7:] = -float("inf")
    found = _top_k_top_p(
        logits.clone(), torch.full((20, 1), top_k), torch.full((20, 1), top_p)
    ).isfinite()
    for row, one in enumerate(logits):
        values, ids = one.sort(descending=True, stable=True)
        mass = values[:top_k].softmax(0)
        kept = ids[:top_k][(mass.cumsum(0) - mass) < top_p + (top_p == 1.0)]
        kept = kept[one[kept].isfinite()]
        assert found[row].nonzero().flatten().tolist() == sorted(kept.tolist()), row


def test_penalties_are_those_of_a_loop_over_tokens() -> None:
    one = sequence(
        prompt=(1, 2, 2, 5),
        output=(2, 3, 3, 3),
        drafted=(5, 3),
        stops=frozenset({0}),
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        min_tokens=7,
    )
    expected = LOGITS.clone()
    for token in {1, 2, 3, 5}:
        value = expected[token]
        expected[token] = value / 1.5 if value > 0 else value * 1.5
    for token, count in {2: 1, 3: 4, 5: 1}.items():
        expected[token] -= 0.25 + 0.5 * count
    expected[0] = -float("inf")
    torch.testing.assert_close(_penalised(LOGITS.clone().unsqueeze(0), [one])[0], expected)
