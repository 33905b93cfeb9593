"""How Triton multiplies numbers of a dtype, compiled and interpreted."""

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from triton import knobs

DTYPES: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True, slots=True)
class DotForm:
    """What a kernel's dot products get, besides their operands; sums are always in float32."""

    dtype: Any  # triton's, of both operands
    precision: str  # "ieee" keeps float32 from being rounded to TF32


def dot_form(dtype: torch.dtype) -> DotForm:
    """Tensor cores for 16-bit numbers, exact products for float32.

    Raises ValueError for other dtypes. The interpreter multiplies bfloat16's bit patterns as
    integers, so there operands are widened first, which changes no product.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no kernel for {dtype}; float32, bfloat16 and float16 have one")
    widened = tl.float32 if knobs.runtime.interpret else DTYPES[dtype]
    return DotForm(widened, "ieee")


def block_for(size: int, *, least: int = 16) -> int:
    """The power of two that holds `size`; dot products want at least 16."""
    return max(least, 1 << (size - 1).bit_length())
