"""Memory that comes when it is used: zero, whole, and kept as it is while it is touched."""

import platform
import sys

import psutil
import pytest
import torch

from server.engine.mapped_memory import touch_beside, zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5000])
def test_zeros_of_any_length(count: int, dtype: torch.dtype) -> None:
    memory = zeros(count, dtype)
    assert (memory.shape, memory.dtype) == ((count,), dtype)
    assert torch.equal(memory, torch.zeros(count, dtype=dtype))
    memory += 1
    assert torch.equal(memory, torch.ones(count, dtype=dtype))


def populates() -> bool:
    release = platform.release().split(".")
    return sys.platform == "linux" and (int(release[0]), int(release[1].split("-")[0])) >= (5, 14)


@pytest.mark.skipif(not populates(), reason="pages are asked for on Linux 5.14 and newer")
def test_touching_gets_the_pages_and_leaves_what_is_in_them() -> None:
    resident = psutil.Process().memory_info().rss
    memory = zeros(50_000_001, torch.float32)
    memory[::1_000_000] = 7
    assert psutil.Process().memory_info().rss - resident < memory.nbytes / 4
    toucher = touch_beside(memory)
    memory[1::1_000_000] = 8  # meanwhile
    toucher.join(60)
    assert not toucher.is_alive()
    assert psutil.Process().memory_info().rss - resident > memory.nbytes * 0.9
    assert memory[::1_000_000].eq(7).all()
    assert memory[1::1_000_000].eq(8).all()
    assert memory.count_nonzero() == 51 + 50
