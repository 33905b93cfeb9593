"""An adapter's way through memory that two processes map."""

import os

import pytest
import torch

from server.adapters.loader_process import sendable
from server.adapters.methods.base import HostAdapter
from server.adapters.shared_memory import ALIGNMENT, share, shared

pytestmark = pytest.mark.skipif(not sendable(), reason="needs Linux's memfd_create")


def test_what_was_shared_comes_out_and_outlives_its_file() -> None:
    draw = torch.Generator().manual_seed(0)
    layout = {
        "layers.0.q": (torch.randn(3, 5, generator=draw), torch.randn(3, 7, generator=draw)),
        "layers.0.k": (torch.randn(1, 1, generator=draw).bfloat16(),),
        "é": (torch.randn(2, 3, 4, generator=draw).half(), torch.zeros(0, 4)),
        "nothing": (),
    }
    one = HostAdapter("d" * 64, "lora", 3, 99, layout)
    handle, described_at = share(one)
    assert described_at % ALIGNMENT == 0
    for tensors in layout.values():
        for tensor in tensors:
            tensor.fill_(-1)  # a copy was shared
    again = shared(handle, described_at)
    os.close(handle)
    draw.manual_seed(0)
    assert (again.digest, again.kind, again.rank, again.bytes) == ("d" * 64, "lora", 3, 99)
    assert list(again.layout) == list(layout)
    for name, tensors in layout.items():
        for was, now in zip(tensors, again.layout[name], strict=True):
            assert now.dtype == was.dtype
            assert now.is_contiguous()
            assert now.data_ptr() % ALIGNMENT == 0
            wanted = torch.randn(was.shape, generator=draw).to(was.dtype)
            torch.testing.assert_close(now, wanted, rtol=0, atol=0)


def test_a_failure_leaves_no_file_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    one = HostAdapter("d" * 64, "lora", 1, 0, {"q": ("no tensor",)})  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        share(one)
    assert set(os.listdir("/proc/self/fd")) == before
