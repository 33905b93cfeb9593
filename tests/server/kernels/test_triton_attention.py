"""The Triton paged attention in Triton's interpreter, against softmax by hand in float64."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from server.kernels.triton import attention
from tests.support.paged_attention import CASES, Case, assert_equals_a_softmax_by_hand

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it for real")

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_a_softmax_by_hand(case: Case) -> None:
    assert_equals_a_softmax_by_hand(case, torch.float32, CPU)


@pytest.mark.parametrize("name", ["decodes", "all at once"])
def test_in_bfloat16(name: str) -> None:
    assert_equals_a_softmax_by_hand(CASES[name], torch.bfloat16, CPU)


@pytest.mark.parametrize(
    "case",
    [
        Case([(150, 1), (0, 1), (33, 1)]),
        Case([(150, 1), (20, 1)], sinks=True, window=100, key_dim=24),
        Case([(30, 20)], window=4),
    ],
    ids=["decodes", "sinks and window", "chunk"],
)
def test_few_queries_are_split_over_their_keys(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LEAST_SPLIT_KEYS", 16)
    monkeypatch.setattr(attention, "WANTED_PROGRAMS", 32)
    assert_equals_a_softmax_by_hand(case, torch.float32, CPU)


def test_a_negative_place_is_not_written() -> None:
    keys, values = torch.zeros(2, 4, 1, 3), torch.zeros(2, 4, 1, 5)
    key, value = torch.randn(2, 1, 3), torch.randn(2, 1, 5)
    nothing = torch.zeros(0, dtype=torch.int64)
    step = attention.AttentionStep(nothing, nothing, nothing, torch.tensor([-1, 6]))
    step.write(key, value, keys, values)
    assert torch.equal(keys[1, 2], key[1])
    assert torch.equal(values[1, 2], value[1])
    assert keys.count_nonzero() == 3 and values.count_nonzero() == 5
