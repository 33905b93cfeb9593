"""Compiles every Triton kernel for NVIDIA GPUs, in large forms; needs none.

Run by itself, without TRITON_INTERPRET: prints a JSON line for each.
"""

import json
from collections.abc import Iterator
from typing import Any

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from server.kernels.triton import attention, low_rank, tiles

INT32 = ("tiles_ptr", "starts_ptr", "slots_ptr", "ranks0_ptr", "ranks1_ptr", "ranks2_ptr")
INT64 = ("tables_ptr", "positions_ptr", "places_ptr")
FLOAT32 = ("y_ptr", "maxima_ptr", "sums_ptr")
BF16, F32 = (tl.bfloat16, "*bf16"), (tl.float32, "*fp32")


def kernels() -> Iterator[tuple[int, Any, str, dict[str, Any]]]:
    """Compute capability × 10, kernel, the pointer type of its numbers, and its constants."""
    yield 90, tiles._cut, "*bf16", {"TILE_ROWS": 16, "AT_ONCE": tiles.STARTS_AT_ONCE}
    ranks = {"RANKS": low_rank.MAX_RANK_BLOCK, "PRECISION": "ieee"}
    for target, rows, (dot, numbers) in (
        (90, tiles.LONG_TILE_ROWS, BF16),
        (80, tiles.SHORT_TILE_ROWS, F32),
    ):
        common = ranks | {"ROWS": rows, "DOT": dot}
        yield target, low_rank._shrink, numbers, common | {"WIDTH": low_rank.SHRINK_WIDTH}
        yield target, low_rank._expand, numbers, common | {"COLUMNS": low_rank.EXPAND_COLUMNS}
    every = {"CAPPED": True, "WINDOWED": True, "SINKS": True, "SPLIT": True, "PRECISION": "ieee"}
    wide = every | {"SHARE": 4, "KEY_DIM": 256, "VALUE_DIM": 256}
    yield 90, attention._attend, "*bf16", wide | {"DOT": tl.bfloat16, "LINES": 64, "KEYS": 32}
    plain = wide | dict.fromkeys(("CAPPED", "WINDOWED", "SINKS", "SPLIT"), False)
    plain |= {"DOT": tl.float32, "LINES": 16, "KEYS": 16}
    yield 80, attention._attend, "*fp32", plain
    yield 90, attention._join, "*bf16", {"SHARE": 4, "LINES": 64, "VALUE_DIM": 256}
    yield 90, attention._write, "*bf16", {"HEADS": 8, "KEY_DIM": 128, "VALUE_DIM": 128}


def main() -> None:
    for capability, kernel, numbers, constants in kernels():
        names = kernel.arg_names
        signature = {
            name: "constexpr" if name in constants else _type(name, numbers, constants)
            for name in names
        }
        values = {(names.index(name),): value for name, value in constants.items()}
        compiled = compile_kernel(
            ASTSource(kernel, signature, values), target=GPUTarget("cuda", capability, 32)
        )
        found = {"kernel": kernel.__name__, "target": capability}
        found |= {"shared_bytes": compiled.metadata.shared, "code": len(compiled.asm["cubin"])}
        print(json.dumps(found))


def _type(name: str, numbers: str, constants: dict[str, Any]) -> str:
    if name in ("scale", "softcap"):
        return "fp32"
    if not name.endswith("_ptr"):
        return "i32"
    if name in INT32:
        return "*i32"
    if name in INT64:
        return "*i64"
    parts = name == "parts_ptr" and constants.get("SPLIT", True)
    return "*fp32" if name in FLOAT32 or parts else numbers


if __name__ == "__main__":
    main()
