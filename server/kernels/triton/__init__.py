"""Triton forms of the low-rank path and of paged attention, for CUDA.

Nothing here reads device memory on the host, and every launch's grid depends on shapes alone, so
that a step can be captured as a CUDA graph. Checked on CPUs only, by Triton's interpreter and by
compiling for NVIDIA targets; never run on a GPU. Importing this package does not import triton:
where it is not installed, everything is served without it.
"""

from importlib.util import find_spec

import torch


def usable(device: torch.device) -> bool:
    """Whether the kernels can run on this device. torch's CUDA wheels bring triton along."""
    return device.type == "cuda" and find_spec("triton") is not None
