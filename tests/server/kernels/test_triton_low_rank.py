"""The Triton low-rank path in Triton's interpreter, against a loop; on a GPU see tests/gpu."""

import pytest
import torch

from server.kernels.segments import NO_ADAPTER, plan_segments
from tests.support.low_rank import Layout, Mix, assert_equals_a_loop, random_pairs

pytest.importorskip("triton", reason="triton is not installed")
from server.kernels.triton import tiles
from server.kernels.triton.backend import TritonBackend
from server.kernels.triton.tiles import cut

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it for real")

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("rank", [1, 8, 24, 33, 64, 100, 256])
def test_any_rank(rank: int, dtype: torch.dtype) -> None:
    runs = [(1, 1), (2, NO_ADAPTER), (1, 0)]
    assert_equals_a_loop(TritonBackend(), Mix(runs, [[rank, rank]], 40, [56]), dtype, CPU)


@DTYPES
@pytest.mark.parametrize(
    "runs",
    [
        [(1, slot) for slot in range(64)],
        [(5, 3)],
        [(1, NO_ADAPTER), (1, 1), (20, NO_ADAPTER), (1, 2), (1, NO_ADAPTER)],
        [(33, 7), (20, NO_ADAPTER), (64, 0)],
        [(1, 0), (1, 1), (70, 1), (9, NO_ADAPTER), (31, 5)],
        [(9, NO_ADAPTER)],
        [(1, 4), (1, NO_ADAPTER), (2, 4)],
    ],
    ids=lambda runs: f"{len(runs)} segments, {sum(count for count, _ in runs)} rows",
)
def test_any_mix(runs: list[tuple[int, int]], dtype: torch.dtype) -> None:
    """Every slot has a rank of its own; some have none."""
    ranks = [(5 * slot) % 17 for slot in range(64)]
    assert_equals_a_loop(TritonBackend(), Mix(runs, [ranks], 40, [56]), dtype, CPU)


@DTYPES
def test_ranks_far_apart_in_one_step(dtype: torch.dtype) -> None:
    """One of 128 and one of 200 among those of 8."""
    ranks = [8, 8, 128, 8, 200, 8]
    runs = [(1, slot) for slot in range(6)]
    assert_equals_a_loop(TritonBackend(), Mix(runs, [ranks], 40, [56]), dtype, CPU)


@DTYPES
@pytest.mark.parametrize("outs", [(200, 1), (40, 33, 130), (16, 16, 16, 16)], ids=str)
def test_modules_that_read_one_input(outs: tuple[int, ...], dtype: torch.dtype) -> None:
    """A slot may have another rank, or none, in each; four are more than one launch takes."""
    ranks = [[0 if (slot + member) % 3 == 0 else 5 + slot for slot in range(3)] for member in outs]
    runs = [(1, 0), (3, 2), (1, NO_ADAPTER), (18, 1)]
    assert_equals_a_loop(TritonBackend(), Mix(runs, ranks, 40, outs), dtype, CPU)


@DTYPES
def test_a_wide_input_is_split(dtype: torch.dtype) -> None:
    mix = Mix([(2, 0), (1, 1)], [[3, 16]], 1300, [20])
    assert_equals_a_loop(TritonBackend(), mix, dtype, CPU)


def test_the_same_step_gives_the_same_bits() -> None:
    x, out, layout = torch.randn(3, 1300), torch.randn(3, 20), Layout.of([9], CPU)
    pairs = random_pairs([9], 1300, 20, torch.float32, torch.Generator())
    stack, plan = layout.stack(pairs, CPU), plan_segments([(3, 0)], [9])
    backend, outs = TritonBackend(), (out.clone(), out.clone())
    for each in outs:
        backend.add(x, [stack], [each], backend.prepare(plan, layout.starts))
    assert torch.equal(*outs)
    assert not torch.equal(out, outs[0])


def test_segments_must_cover_x() -> None:
    backend, layout = TritonBackend(), Layout.of([4], CPU)
    stack = layout.stack(random_pairs([4], 8, 8, torch.float32, torch.Generator()), CPU)
    prepared = backend.prepare(plan_segments([(3, 0)], [4]), layout.starts)
    with pytest.raises(ValueError, match="segments cover 3 rows, x has 4"):
        backend.add(torch.randn(4, 8), [stack], [torch.zeros(4, 8)], prepared)


def test_tiles_never_span_runs_and_spare_ones_are_empty() -> None:
    starts = torch.tensor([0, 1, 1, 19, 51, 51], dtype=torch.int32)  # two runs are empty
    found = cut(starts, rows=60, tile_rows=16)
    assert found[found[:, 2] > 0].tolist() == [[0, 0, 1], [2, 1, 16], [2, 17, 2], [3, 19, 16],
                                               [3, 35, 16]]  # fmt: skip
    assert found.shape[0] == (60 + 5 * 15) // 16


def test_tiles_of_more_runs_than_are_summed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "STARTS_AT_ONCE", 4)
    found = cut(torch.arange(0, 22, 2, dtype=torch.int32), rows=20, tile_rows=16)
    assert found[:10].tolist() == [[run, 2 * run, 2] for run in range(10)]
