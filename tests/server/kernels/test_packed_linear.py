"""Packed linears equal a float64 product, and a row's result never depends on its batch."""

import pytest
import torch

from server.kernels.cpu.native import NativeKernels, load_native
from server.kernels.cpu.packed_linear import PackedLinear
from tests.support.quantization import dequantized

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


@pytest.mark.parametrize("quantize", [False, True], ids=["own", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_every_number_of_rows(
    shape: tuple[int, int], bias: bool, quantize: bool, dtype: torch.dtype, kernels: NativeKernels
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    offsets = torch.randn(shape[0]).to(dtype) if bias else None
    linear = PackedLinear(kernels, weight, offsets, quantize=quantize)
    weight = dequantized(weight) if quantize else weight.double()
    for rows in ROWS:
        wide = torch.randn(rows, 2 * shape[1]).to(dtype)
        x = wide[:, : shape[1]]  # rows that lie apart
        wanted = x.double() @ weight.T
        if offsets is not None:
            wanted += offsets.double()
        scale = float(wanted.abs().max())
        torch.testing.assert_close(linear(x).double(), wanted, **within(dtype, scale))


@pytest.mark.parametrize("quantize", [False, True], ids=["own", "int8"])
def test_a_row_is_the_same_in_every_batch(
    quantize: bool, dtype: torch.dtype, kernels: NativeKernels
) -> None:
    torch.manual_seed(1)
    linear = PackedLinear(kernels, torch.randn(150, 77).to(dtype), None, quantize=quantize)
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


def test_every_int8_is_multiplied_exactly(dtype: torch.dtype, kernels: NativeKernels) -> None:
    """Weights that are int8 times a power of two come back as they were, both ends included."""
    numbers = torch.arange(-127, 128)
    weight = torch.stack([numbers / 2**power for power in range(50)]).to(dtype)
    linear = PackedLinear(kernels, weight, None, quantize=True)
    for rows in (255, 1):
        out = linear(torch.eye(255)[:rows].to(dtype))
        assert torch.equal(out, weight.T[:rows])


def test_outputs_without_weights_and_with_tiny_ones(
    dtype: torch.dtype, kernels: NativeKernels
) -> None:
    weight = torch.zeros(5, 6, dtype=dtype)
    weight[1] = 2.0**-149 if dtype == torch.float32 else 2.0**-133  # below any normal number
    weight[2, 3] = -1
    out = PackedLinear(kernels, weight, None, quantize=True)(torch.ones(1, 6, dtype=dtype))
    assert out[0, [0, 2, 3, 4]].tolist() == [0, -1, 0, 0]
    assert float(out[0, 1]) == pytest.approx(float(weight[1].double().sum()), abs=1e-37)
