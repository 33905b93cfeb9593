"""A laid-out adapter in memory that another process can map: made there, used here, never copied.

The tensors lie one after another in an anonymous file, and a description of them after the last.
Linux only: a file in memory (memfd) is bounded by the machine's memory alone, where /dev/shm is
often 64 MB in a container.
"""

import math
import mmap
import os
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from server.adapters.methods.base import HostAdapter, Layout

ALIGNMENT = 64  # bytes; what the widest vector instructions like best


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str  # "bfloat16"
    shape: tuple[int, ...]
    at: int  # bytes from the start, a multiple of ALIGNMENT


@dataclass(frozen=True, slots=True)
class _Description:
    digest: str
    kind: str
    rank: int
    bytes: int
    layout: dict[str, tuple[_Tensor, ...]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Description)


def share(adapter: HostAdapter) -> tuple[int, int]:
    """Puts a copy of `adapter` into a file of its own.

    Returns its descriptor, which the caller closes, and where in it the description begins.
    """
    end = 0
    layout: dict[str, tuple[_Tensor, ...]] = {}
    for name, tensors in adapter.layout.items():
        described: list[_Tensor] = []
        for tensor in tensors:
            dtype = str(tensor.dtype).removeprefix("torch.")
            described.append(_Tensor(dtype, tuple(tensor.shape), end))
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        layout[name] = tuple(described)
    text = _encoder.encode(
        _Description(adapter.digest, adapter.kind, adapter.rank, adapter.bytes, layout)
    )
    handle = os.memfd_create(f"adapter-{adapter.digest[:12]}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(handle, end + len(text))
        with mmap.mmap(handle, end + len(text)) as memory:
            memory[end:] = text
            _copy(adapter.layout, layout, memory)
    except BaseException:
        os.close(handle)
        raise
    return handle, end


def shared(handle: int, described_at: int) -> HostAdapter:
    """The adapter in a file that `share` made, mapped; `handle` may be closed afterwards.

    Where CUDA is, copied into pinned memory instead.
    """
    # Mapped by torch, which closes what it opens: Python's mmap keeps a descriptor open for as long
    # as it is mapped, and a host cache may hold more adapters than a process may have files open.
    size = os.fstat(handle).st_size
    flat = torch.from_file(f"/dev/fd/{handle}", shared=True, size=size, dtype=torch.uint8)
    flat[:: mmap.PAGESIZE].sum()  # pages are mapped here, in a thread for which no step waits
    description = _decoder.decode(flat[described_at:].numpy().tobytes())
    if torch.cuda.is_available():
        flat = flat.pin_memory()
    return HostAdapter(
        description.digest,
        description.kind,
        description.rank,
        description.bytes,
        {
            name: tuple(_view(flat, each) for each in tensors)
            for name, tensors in description.layout.items()
        },
    )


def _copy(tensors: Layout, described: dict[str, tuple[_Tensor, ...]], memory: mmap.mmap) -> None:
    """In a function of its own: no view of `memory` may be left when it is closed."""
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    for name, own in tensors.items():
        for tensor, place in zip(own, described[name], strict=True):
            _view(flat, place).copy_(tensor)


def _view(flat: Tensor, described: _Tensor) -> Tensor:
    dtype = getattr(torch, described.dtype)
    end = described.at + math.prod(described.shape) * dtype.itemsize
    return flat[described.at : end].view(dtype).view(described.shape)
