"""The interface of the batched low-rank path, and its plain-torch reference.

Source of the terms: SGMV, Punica, arXiv:2310.18547. For row t of slot s, with the adapter's
scale folded into `b` when it was laid out:

    y[t] = x[t] @ a[s].T          shrink, to rank r
    out[t] += y[t] @ b[s]         expand, back to the module's width

a[s] and b[s] are as many rows of a module's stack as the slot's adapter has rank there. The slot's
range of rows is the same in every module and is sized by its adapter, so that no slot pays for
another's rank, neither in memory nor in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from server.kernels.segments import NO_ADAPTER, SegmentPlan

if TYPE_CHECKING:
    from server.kernels.cpu.native import NativeKernels


GRANULE = 8
"""A slot has a multiple of so many rows, so that slots of nearly one rank can be batched."""


def rows_for_rank(rank: int) -> int:
    """Rows of a slot whose adapter has this rank, the largest over its modules."""
    return -(-rank // GRANULE) * GRANULE


@dataclass(frozen=True, slots=True)
class Stack:
    """One module's adapters. A slot's rows at or above its rank in this module are zero."""

    a: Tensor  # [rows, in]
    b: Tensor  # [rows, out]
    ranks: Tensor  # [slots] int32, on the host; 0: the slot's adapter leaves this module alone
    device_ranks: Tensor | None = None  # the same beside a and b; None: they are on the host too


class SlotStarts:
    """The first row of each slot, the same in every stack of an adapter kind.

    Must stay true: `host` and `device` say the same, once what was enqueued has run.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.host = [0] * slots
        self.device = torch.zeros(slots, dtype=torch.int32, device=device)  # beside the stacks

    def put(self, slot: int, start: int) -> None:
        """The host does not wait for a device."""
        self.host[slot] = start
        self.device[slot].fill_(start)


class LowRankBackend(Protocol):
    """One implementation of shrink and expand.

    `prepare` is called once per step and its result handed to every `add` of that step, so that
    what depends on segments and slots alone is worked out once, not per module.
    """

    name: str

    def prepare(self, segments: SegmentPlan, starts: SlotStarts) -> Any:
        """Whatever this backend wants to know of the step's segments, and of where slots lie.

        Hooks know it from then on, until the next step is prepared.
        """
        ...

    def hook(self, stacks: Sequence[Stack]) -> Any | None:
        """`add` of these stacks as native code calls it (native.Hook), where there is such a form.

        Valid as long as the stacks' tensors stay where they are.
        """
        ...

    def add(
        self, x: Tensor, stacks: Sequence[Stack], outs: Sequence[Tensor], prepared: Any
    ) -> None:
        """Adds the update of every module that reads x: stacks[i] into outs[i].

        x [tokens, in]; outs[i] [tokens, out_i], whose rows may lie apart. Rows of NO_ADAPTER are
        left as they are, to the bit. Raises ValueError if the segments do not cover x.
        """
        ...


class ReferenceBackend:
    """A loop over segments, each at its own adapter's rank: what every other form must equal."""

    name = "reference"

    def prepare(self, segments: SegmentPlan, starts: SlotStarts) -> tuple[SegmentPlan, SlotStarts]:
        return segments, starts

    def hook(self, stacks: Sequence[Stack]) -> None:
        return None

    def add(
        self,
        x: Tensor,
        stacks: Sequence[Stack],
        outs: Sequence[Tensor],
        prepared: tuple[SegmentPlan, SlotStarts],
    ) -> None:
        segments, starts = prepared
        check_cover(x, segments)
        for stack, out in zip(stacks, outs, strict=True):
            for item in segments.items:
                rank = 0 if item.slot == NO_ADAPTER else int(stack.ranks[item.slot])
                if rank:
                    tokens = slice(item.start, item.end)
                    rows = slice(starts.host[item.slot], starts.host[item.slot] + rank)
                    out[tokens] += x[tokens] @ stack.a[rows].T @ stack.b[rows]


def check_cover(x: Tensor, segments: SegmentPlan) -> None:
    """Raises ValueError if the segments do not cover the rows of x exactly."""
    if segments.tokens != x.shape[0]:
        raise ValueError(f"segments cover {segments.tokens} rows, x has {x.shape[0]}")


def default_backend(
    device: torch.device, kernels: "NativeKernels | None", *, triton: bool = False
) -> LowRankBackend:
    """The fastest form there is for this device; `kernels` are None where it has none.

    `triton`: whether its kernels may be used.
    """
    from server.kernels.cpu.native_backend import NativeBackend
    from server.kernels.cpu.torch_backend import TorchCpuBackend

    if triton:
        from server.kernels.triton.backend import TritonBackend  # triton need not be installed

        return TritonBackend()
    if device.type != "cpu":
        return ReferenceBackend()
    return TorchCpuBackend() if kernels is None else NativeBackend(kernels)
