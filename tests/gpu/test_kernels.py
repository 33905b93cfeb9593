"""The Triton kernels on a GPU, against loops in float64: what elsewhere is only interpreted."""

import random

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

from server.kernels.segments import NO_ADAPTER
from server.kernels.triton.backend import TritonBackend
from tests.support.low_rank import Mix, assert_equals_a_loop
from tests.support.paged_attention import CASES, Case, assert_equals_a_softmax_by_hand

CUDA = torch.device("cuda")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@DTYPES
@pytest.mark.parametrize("rank", [1, 2, 8, 16, 24, 33, 64, 100, 128, 255, 256])
@pytest.mark.parametrize("width", [40, 576, 4096])
def test_any_rank(rank: int, width: int, dtype: torch.dtype) -> None:
    runs = [(1, 1), (2, NO_ADAPTER), (1, 0), (40, 1)]
    mix = Mix(runs, [[rank, max(1, rank // 2)]], width, [56])
    assert_equals_a_loop(TritonBackend(), mix, dtype, CUDA)


@DTYPES
@pytest.mark.parametrize("segments", [1, 2, 7, 16, 33, 64])
@pytest.mark.parametrize("longest", [1, 5, 90])
@pytest.mark.parametrize("outs", [(4096,), (300, 1), (576, 192, 192), (16, 16, 16, 16)], ids=str)
def test_any_mix(segments: int, longest: int, outs: tuple[int, ...], dtype: torch.dtype) -> None:
    """Rows of the base in between, other ranks and none in each module."""
    draw = random.Random(segments * 100 + longest)
    slots = [draw.choice([NO_ADAPTER, *range(64), *range(64)]) for _ in range(segments)]
    runs = [(draw.randint(1, longest), slot) for slot in slots]
    ranks = [[draw.choice([0, 1, 8, 16, 20, 64, 200]) for _ in range(64)] for _ in outs]
    assert_equals_a_loop(TritonBackend(), Mix(runs, ranks, 576, outs), dtype, CUDA)


@DTYPES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention(case: Case, dtype: torch.dtype) -> None:
    assert_equals_a_softmax_by_hand(case, dtype, CUDA)


@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        Case([(4000, 1)], heads=32, kv_heads=8, key_dim=128, value_dim=128),
        Case([(100 * n, 1) for n in range(30)], heads=32, kv_heads=8, key_dim=128, value_dim=128),
        Case([(0, 300), (900, 100)], heads=8, kv_heads=4, key_dim=256, value_dim=256, window=128),
        Case([(700, 1)], heads=71, kv_heads=1, key_dim=64, value_dim=64),
    ],
    ids=["one long context", "many contexts", "wide heads", "one head of keys for all"],
)
def test_attention_at_real_sizes(case: Case, dtype: torch.dtype) -> None:
    assert_equals_a_softmax_by_hand(case, dtype, CUDA)
