"""Every form of the low-rank path against a loop over rows, over mixes of adapters and ranks."""

import random

import pytest
import torch
from torch import Tensor

from server.kernels.backend import LowRankBackend, ReferenceBackend, Stack
from server.kernels.cpu.native import load_native
from server.kernels.cpu.native_backend import NativeBackend
from server.kernels.cpu.torch_backend import TorchCpuBackend
from server.kernels.segments import NO_ADAPTER, plan_segments

SLOTS, MAX_RANK, IN, OUT = 12, 64, 40, 56
RANKS_OF_4 = torch.tensor([4, 4, 4], dtype=torch.int32)
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


def loop(x: Tensor, a: Tensor, b: Tensor, runs: list[tuple[int, int]], ranks: list[int]) -> Tensor:
    """The update of each row by itself, in float64."""
    a, b, rows = a.double(), b.double(), []
    for count, slot in runs:
        for _ in range(count):
            row = x[len(rows)].double()
            if slot == NO_ADAPTER:
                rows.append(torch.zeros(b.shape[2], dtype=torch.float64))
            else:
                r = ranks[slot]
                rows.append(row @ a[slot, :r].T @ b[slot, :r])
    return torch.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("rank", [1, 8, 24, 64, None], ids=lambda r: f"rank {r or 'mixed'}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_a_loop_over_rows(
    backend: LowRankBackend, mix: str, rank: int | None, dtype: torch.dtype
) -> None:
    runs = MIXES[mix]
    draw = random.Random(0)
    ranks = [rank or draw.randint(1, MAX_RANK) for _ in range(SLOTS)]
    generator = torch.Generator().manual_seed(0)
    tokens = sum(count for count, _ in runs)
    x = torch.randn(tokens, IN, generator=generator).to(dtype)
    a, b = torch.zeros(SLOTS, MAX_RANK, IN), torch.zeros(SLOTS, MAX_RANK, OUT)
    for slot, r in enumerate(ranks):
        a[slot, :r] = torch.randn(r, IN, generator=generator) / IN**0.5
        b[slot, :r] = torch.randn(r, OUT, generator=generator) / r**0.5
    a, b = a.to(dtype), b.to(dtype)
    base = torch.randn(tokens, OUT, generator=generator).to(dtype)
    out = base.clone()

    prepared = backend.prepare(plan_segments(runs, ranks))
    backend.add(x, [Stack(a, b, torch.tensor(ranks, dtype=torch.int32))], [out], prepared)

    expected = base.double() + loop(x, a, b, runs, ranks)
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
    a, b = torch.zeros(slots, max(ranks), width_in), torch.zeros(slots, max(ranks), width_out)
    for slot, r in enumerate(ranks):
        a[slot, :r] = torch.randn(r, width_in, generator=generator) / width_in**0.5
        b[slot, :r] = torch.randn(r, width_out, generator=generator) / r**0.5
    a, b = a.to(dtype), b.to(dtype)
    base = torch.randn(tokens, width_out, generator=generator).to(dtype)
    out = base.clone()
    stack = Stack(a, b, torch.tensor(ranks, dtype=torch.int32))

    backend.add(x, [stack], [out], backend.prepare(plan_segments(runs, ranks)))

    expected = base.double() + loop(x, a, b, runs, list(ranks))
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


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
    a = torch.randn(4, MAX_RANK, width_in, generator=generator).to(dtype)
    b = torch.randn(4, MAX_RANK, width_out, generator=generator).to(dtype)
    stack = Stack(a, b, torch.tensor(ranks, dtype=torch.int32))
    together, alone = torch.zeros(2, tokens, width_out).to(dtype)
    row_slots = [slot for count, slot in runs for _ in range(count)]
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            together.zero_()
            backend.add(x, [stack], [together], backend.prepare(plan_segments(runs, ranks)))
            alone.zero_()
            for row, slot in enumerate(row_slots):
                prepared = backend.prepare(plan_segments([(1, slot)], ranks))
                backend.add(x[row : row + 1], [stack], [alone[row : row + 1]], prepared)
            assert torch.equal(together, alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_a_poisoned_slot_leaves_other_rows_as_they_are(backend: LowRankBackend) -> None:
    runs = [(1, 0), (1, 1), (1, 2), (20, 1), (1, NO_ADAPTER)]
    prepared = backend.prepare(plan_segments(runs, [4] * 3))
    x = torch.randn(24, IN)
    stack = Stack(torch.randn(3, 4, IN), torch.randn(3, 4, OUT), RANKS_OF_4)
    clean, poisoned = torch.zeros(24, OUT), torch.zeros(24, OUT)
    backend.add(x, [stack], [clean], prepared)
    stack.a[1] = float("nan")
    backend.add(x, [stack], [poisoned], prepared)
    others = torch.tensor([0, 2, 23])
    assert torch.equal(poisoned[others], clean[others])
    assert poisoned[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_segments_must_cover_x(backend: LowRankBackend) -> None:
    prepared = backend.prepare(plan_segments([(3, 0)], [4]))
    stack = Stack(torch.randn(3, 4, IN), torch.randn(3, 4, OUT), RANKS_OF_4)
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
    stacks = []
    for index, size in enumerate(sizes):
        own = [rank if (slot + index) % 3 else 0 for slot, rank in enumerate(ranks)]
        a, b = torch.zeros(4, MAX_RANK, IN), torch.zeros(4, MAX_RANK, size)
        for slot, r in enumerate(own):
            a[slot, :r] = torch.randn(r, IN, generator=generator) / IN**0.5
            b[slot, :r] = torch.randn(r, size, generator=generator) / max(1, r) ** 0.5
        stacks.append(Stack(a.to(dtype), b.to(dtype), torch.tensor(own, dtype=torch.int32)))
        start = sum(sizes[:index])
        outs.append(fused[:, start : start + size])
        expected[:, start : start + size] += loop(x, a.to(dtype), b.to(dtype), runs, own)

    backend.add(x, stacks, outs, backend.prepare(plan_segments(runs, ranks)))

    torch.testing.assert_close(
        fused.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )
