"""Packed linears equal a float64 product, and a row's result never depends on its batch."""

import pytest
import torch

from server.kernels.cpu.native import NativeKernels, load_native
from server.kernels.cpu.packed_linear import PackedLinear

pytestmark = [
    pytest.mark.skipif(not load_native(), reason="the native library is not built"),
    pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str),
]
SHAPES = [(48, 64), (50, 65), (7, 3), (200, 31), (100, 1)]  # out, in
ROWS = [1, 2, 3, 5, 8, 9, 131, 300]


def within(dtype: torch.dtype, scale: float) -> dict[str, float]:
    """Rounding of the result to the dtype, and of float32 sums."""
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    return {"rtol": rtol, "atol": 1e-5 * scale}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_every_number_of_rows(
    shape: tuple[int, int], bias: bool, dtype: torch.dtype, kernels: NativeKernels
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    offsets = torch.randn(shape[0]).to(dtype) if bias else None
    linear = PackedLinear(kernels, weight, offsets)
    for rows in ROWS:
        wide = torch.randn(rows, 2 * shape[1]).to(dtype)
        x = wide[:, : shape[1]]  # rows that lie apart
        wanted = x.double() @ weight.double().T
        if offsets is not None:
            wanted += offsets.double()
        scale = float(wanted.abs().max())
        torch.testing.assert_close(linear(x).double(), wanted, **within(dtype, scale))


def test_a_row_is_the_same_in_every_batch(dtype: torch.dtype, kernels: NativeKernels) -> None:
    torch.manual_seed(1)
    linear = PackedLinear(kernels, torch.randn(150, 77).to(dtype), None)
    x = torch.randn(270, 77).to(dtype)
    alone = torch.cat([linear(row.unsqueeze(0)) for row in x])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (2, 7, 16, 130, 270):
                batched = torch.cat([linear(rows) for rows in x.split(size)])
                assert torch.equal(batched, alone), (count, size)
    finally:
        torch.set_num_threads(threads)


def test_not_finite_rows_spoil_nobody_else(dtype: torch.dtype, kernels: NativeKernels) -> None:
    linear = PackedLinear(kernels, torch.randn(60, 20).to(dtype), None)
    x = torch.randn(9, 20).to(dtype)
    clean = linear(x)
    x[4, 7] = float("nan")
    out = linear(x)
    assert out[4].isnan().all()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(out[others], clean[others])
