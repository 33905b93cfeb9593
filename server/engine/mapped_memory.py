"""Zeroed memory that costs nothing until it is used, and is made good on in the background.

Here: zeros, touch_beside. A KV cache of gigabytes is most of a small base's start-up otherwise: a
second for every five gigabytes, and many seconds where a virtual machine has yet to get its memory
from its host.
"""

import ctypes
import mmap
import os
import sys
import threading
from contextlib import suppress

import torch
from torch import Tensor

POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14: gives pages, and leaves what is in them
PIECE_BYTES = 1 << 20  # at once: whoever else wants memory of this process waits for so much


def zeros(count: int, dtype: torch.dtype) -> Tensor:
    """[count ≥ 1] zeros in main memory, whose pages come when they are first written."""
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype, count=count)


def touch_beside(memory: Tensor) -> threading.Thread:
    """Gets all pages of `zeros` in a thread, in what time others leave over.

    So a machine that has not got them is found out soon after the start, and not months later.
    """
    thread = threading.Thread(target=_touch, args=(memory,), name="memory-toucher", daemon=True)
    thread.start()
    return thread


def _touch(memory: Tensor) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError):  # a sandbox may not allow it; then it is done at our own priority
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    libc = ctypes.CDLL(None, use_errno=True)  # its calls leave the interpreter to others
    end = memory.data_ptr() + memory.nbytes
    for start in range(memory.data_ptr(), end, PIECE_BYTES):
        length = ctypes.c_size_t(min(PIECE_BYTES, end - start))
        if libc.madvise(ctypes.c_void_p(start), length, POPULATE_WRITE):
            return  # an older kernel: pages come as they are used
