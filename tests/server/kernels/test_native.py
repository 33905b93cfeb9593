"""The native library is there wherever a compiler is, and lists what the processor can run."""

import os

import pytest

from server.kernels.cpu.native import load_native

BFLOAT16 = {"avx512-bf16", "avx512-bf16-dots"}  # which of them is faster depends on the processor
KNOWN = ["avx512", "avx2", "baseline"]  # the fastest first


def test_the_library_is_built_and_ends_with_what_every_processor_has() -> None:
    names = [kernels.name for kernels in load_native()]
    if not names and os.environ.get("ADAPTERD_TEST_ALL") != "1":
        pytest.skip("the native library is not built: install g++, then the package again")
    others = names
    if BFLOAT16 & set(names):
        assert set(names[:2]) == BFLOAT16, "before the others, both of them"
        others = names[2:]
    assert others == [name for name in KNOWN if name in names]
    assert names[-1:] == ["baseline"]
