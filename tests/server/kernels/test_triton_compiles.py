"""Every Triton kernel compiles to machine code for NVIDIA GPUs, in an interpreter of its own:
elsewhere in the tests Triton interprets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SHARED_BYTES = 101_376  # a program's, on GPUs of compute capability 8.6 and 8.9
KERNELS = {"_cut", "_shrink", "_expand", "_attend", "_join", "_write"}


def test_every_kernel_compiles(tmp_path: Path) -> None:
    variables = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_triton"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["kernel"] for each in found} == KERNELS
    assert all(each["code"] > 0 for each in found)
    assert max(each["shared_bytes"] for each in found) <= SHARED_BYTES, found
