"""The GPU that a result was measured on, and how fast it copies its own memory."""

from dataclasses import dataclass
from statistics import median

import torch

COPIED_BYTES = 4 << 30
TRIES = 7


@dataclass(frozen=True, slots=True)
class Gpu:
    """`copy_gb_per_s` counts what is read and what is written."""

    name: str
    memory_gib: float
    capability: str
    cuda: str
    triton: str
    copy_gb_per_s: float

    def text(self) -> str:
        return (
            f"{self.name}, {self.memory_gib} GiB, compute capability {self.capability}, copies "
            f"{self.copy_gb_per_s:.0f} GB/s; CUDA {self.cuda}, triton {self.triton}"
        )


def describe() -> Gpu:
    """The current CUDA device; its copy speed is measured, the median of TRIES."""
    import triton

    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(
        name=found.name,
        memory_gib=round(found.total_memory / 2**30, 1),
        capability=f"{found.major}.{found.minor}",
        cuda=torch.version.cuda or "unknown",
        triton=triton.__version__,
        copy_gb_per_s=_copy_gb_per_s(),
    )


def _copy_gb_per_s() -> float:
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(TRIES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    del source, target
    torch.cuda.empty_cache()  # contestants run in processes of their own, on the same device
    return 2 * COPIED_BYTES / median(seconds) / 1e9
