"""Every form of the low-rank path against a loop over rows, over mixes of adapters and ranks."""

import random

import pytest
import torch

from server.kernels.backend import LowRankBackend, ReferenceBackend
from server.kernels.cpu.native import load_native
from server.kernels.cpu.native_backend import NativeBackend
from server.kernels.cpu.torch_backend import ShortGroup, TorchCpuBackend, Window
from server.kernels.segments import NO_ADAPTER, plan_segments
from tests.support.low_rank import Layout, loop, random_pairs

SLOTS, IN, OUT = 12, 40, 56
RANKS = {
    **{f"rank {rank}": [rank] * SLOTS for rank in (1, 8, 24, 64)},
    "one of 128": [8] * 5 + [128] + [8] * 6,
    "mixed": [random.Random(slot).randint(1, 256) for slot in range(SLOTS)],
}
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}

BACKENDS: list[LowRankBackend] = [
    ReferenceBackend(),
    TorchCpuBackend(),
    *(NativeBackend(kernels) for kernels in load_native()),
]
"""The native one in every form that this processor can run."""

MIXES: dict[str, list[tuple[int, int]]] = {  # (rows, slot) runs
    "one": [(5, 3)],
    "distinct decodes": [(1, slot) for slot in range(SLOTS)],
    "two each": [(2, slot) for slot in range(SLOTS)],
    "uneven decodes": [(1, 2), (3, 4), (1, 5), (7, 6)],
    "far apart": [(1, 0), (1, 11)],
    "with base between": [(1, NO_ADAPTER), (1, 1), (2, NO_ADAPTER), (1, 2), (1, NO_ADAPTER)],
    "base only": [(9, NO_ADAPTER)],
    "long prompts": [(33, 7), (20, NO_ADAPTER), (64, 0)],
    "decodes, then prompts": [(1, 0), (1, 1), (1, 5), (40, 1), (9, NO_ADAPTER), (31, 5)],
    "one slot in both": [(2, 3), (1, NO_ADAPTER), (50, 3)],
    "a slot twice among decodes": [(1, 4), (1, NO_ADAPTER), (2, 4)],
}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_a_loop_over_rows(
    backend: LowRankBackend, mix: str, ranks: str, shuffled: bool, dtype: torch.dtype
) -> None:
    runs, highest = MIXES[mix], RANKS[ranks]
    layout = Layout.of(highest, CPU, shuffled=shuffled)
    generator = torch.Generator().manual_seed(0)
    tokens = sum(count for count, _ in runs)
    x = torch.randn(tokens, IN, generator=generator).to(dtype)
    pairs = random_pairs(highest, IN, OUT, dtype, generator)
    base = torch.randn(tokens, OUT, generator=generator).to(dtype)
    out = base.clone()

    prepared = backend.prepare(plan_segments(runs, highest), layout.starts)
    backend.add(x, [layout.stack(pairs, CPU)], [out], prepared)

    expected = base.double() + loop(x, pairs, runs)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    without = [slot == NO_ADAPTER for count, slot in runs for _ in range(count)]
    assert torch.equal(out[torch.tensor(without)], base[torch.tensor(without)]), "base rows changed"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("ranks", "width_in", "width_out"),
    [((1, 2, 3), 7, 5), ((5, 256, 17), 96, 130), ((128, 7, 64), 200, 1536), ((16, 9, 4), 33, 800)],
)
def test_odd_sizes_and_every_number_of_rows(
    backend: LowRankBackend,
    dtype: torch.dtype,
    ranks: tuple[int, ...],
    width_in: int,
    width_out: int,
) -> None:
    """Segments of each number of rows up to two tiles, and two long ones."""
    slots = len(ranks)
    runs = [(count, count % slots) for count in (*range(1, 14), 131, 60)]
    generator = torch.Generator().manual_seed(2)
    tokens = sum(count for count, _ in runs)
    x = torch.randn(tokens, width_in, generator=generator).to(dtype)
    layout = Layout.of(ranks, CPU)
    pairs = random_pairs(ranks, width_in, width_out, dtype, generator)
    base = torch.randn(tokens, width_out, generator=generator).to(dtype)
    out = base.clone()

    prepared = backend.prepare(plan_segments(runs, ranks), layout.starts)
    backend.add(x, [layout.stack(pairs, CPU)], [out], prepared)

    expected = base.double() + loop(x, pairs, runs)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_torchs_form_batches_slots_of_one_size_and_views_them_where_they_lie_evenly() -> None:
    """One of 128 makes no other pay; gaps are read over; where none is even, rows are gathered."""
    ranks = [8, 5, 128, 8, 16, 16, 16, 16]
    layout = Layout.of(ranks, CPU, shuffled=False)
    runs = [(1, slot) for slot in range(8)]
    prepared = TorchCpuBackend().prepare(plan_segments(runs, ranks), layout.starts)
    small, large, middle = prepared.short
    assert (small.rank, large.rank, middle.rank) == (8, 128, 16)
    assert isinstance(small.places, torch.Tensor)
    assert large.places == Window(first=16, step=128, count=1)
    assert middle.places == Window(first=152, step=16, count=4)

    def group(*slots: int) -> ShortGroup:
        plan = plan_segments([(1, slot) for slot in slots], ranks)
        (only,) = TorchCpuBackend().prepare(plan, layout.starts).short
        return only

    assert group(4, 6).places == Window(first=152, step=32, count=2)
    assert group(7, 4, 5).places == Window(first=152, step=16, count=4)
    assert group(0, 1).places == Window(first=0, step=8, count=2)


NATIVE = [backend for backend in BACKENDS if isinstance(backend, NativeBackend)]


@pytest.mark.parametrize("backend", NATIVE, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_what_shares_its_batch(
    backend: NativeBackend, dtype: torch.dtype
) -> None:
    """To the bit: alone, among others of its adapter, of others, and with one thread or two."""
    runs = [(1, 0), (1, 1), (2, 2), (5, 3), (6, 1), (40, 2), (1, NO_ADAPTER), (97, 0)]
    ranks, width_in, width_out = [16, 9, 64, 33], 200, 900
    generator = torch.Generator().manual_seed(3)
    tokens, threads = sum(count for count, _ in runs), torch.get_num_threads()
    x = torch.randn(tokens, width_in, generator=generator).to(dtype)
    layout = Layout.of(ranks, CPU)
    stack = layout.stack(random_pairs(ranks, width_in, width_out, dtype, generator), CPU)
    together, alone = torch.zeros(2, tokens, width_out).to(dtype)
    row_slots = [slot for count, slot in runs for _ in range(count)]
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            together.zero_()
            prepared = backend.prepare(plan_segments(runs, ranks), layout.starts)
            backend.add(x, [stack], [together], prepared)
            alone.zero_()
            for row, slot in enumerate(row_slots):
                prepared = backend.prepare(plan_segments([(1, slot)], ranks), layout.starts)
                backend.add(x[row : row + 1], [stack], [alone[row : row + 1]], prepared)
            assert torch.equal(together, alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_a_poisoned_slot_leaves_other_rows_as_they_are(backend: LowRankBackend) -> None:
    runs = [(1, 0), (1, 1), (1, 2), (20, 1), (1, NO_ADAPTER)]
    layout = Layout.of([4] * 3, CPU)
    prepared = backend.prepare(plan_segments(runs, [4] * 3), layout.starts)
    x = torch.randn(24, IN)
    pairs = random_pairs([4] * 3, IN, OUT, torch.float32, torch.Generator())
    stack, start = layout.stack(pairs, CPU), layout.starts.host[1]
    clean, poisoned = torch.zeros(24, OUT), torch.zeros(24, OUT)
    backend.add(x, [stack], [clean], prepared)
    stack.a[start : start + 8] = float("nan")
    backend.add(x, [stack], [poisoned], prepared)
    others = torch.tensor([0, 2, 23])
    assert torch.equal(poisoned[others], clean[others])
    assert poisoned[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_segments_must_cover_x(backend: LowRankBackend) -> None:
    layout = Layout.of([4], CPU)
    prepared = backend.prepare(plan_segments([(3, 0)], [4]), layout.starts)
    stack = layout.stack(random_pairs([4], IN, OUT, torch.float32, torch.Generator()), CPU)
    with pytest.raises(ValueError, match="segments cover 3 rows, x has 4"):
        backend.add(torch.randn(4, IN), [stack], [torch.zeros(4, OUT)], prepared)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("sizes", [(576, 192, 192), (16, 1, 300), (33,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modules_that_read_one_input_are_done_together(
    backend: LowRankBackend, sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Outputs are columns of one tensor; a slot may have another rank, or none, in each."""
    runs = [(1, 0), (1, 1), (3, 2), (1, NO_ADAPTER), (9, 1), (30, 0), (2, 3)]
    generator = torch.Generator().manual_seed(1)
    tokens, ranks = sum(count for count, _ in runs), [16, 5, 9, 2]
    x = torch.randn(tokens, 2 * IN, generator=generator).to(dtype)[:, 7 : 7 + IN]
    base = torch.randn(tokens, sum(sizes), generator=generator).to(dtype)
    fused, outs, expected = base.clone(), [], base.double()
    layout, stacks = Layout.of(ranks, CPU), []
    for index, size in enumerate(sizes):
        own = [rank - index if (slot + index) % 3 else 0 for slot, rank in enumerate(ranks)]
        pairs = random_pairs(own, IN, size, dtype, generator)
        stacks.append(layout.stack(pairs, CPU))
        start = sum(sizes[:index])
        outs.append(fused[:, start : start + size])
        expected[:, start : start + size] += loop(x, pairs, runs)

    backend.add(x, stacks, outs, backend.prepare(plan_segments(runs, ranks), layout.starts))

    torch.testing.assert_close(
        fused.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )
