"""The interface of the batched low-rank path, and its plain-torch reference.

Source of the terms: SGMV, Punica, arXiv:2310.18547. For row t of slot s, with the adapter's
scale folded into `b` when it was laid out:

    y[t] = x[t] @ a[s].T          shrink, to rank r
    out[t] += y[t] @ b[s]         expand, back to the module's width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from server.kernels.segments import NO_ADAPTER, SegmentPlan

if TYPE_CHECKING:
    from server.kernels.cpu.native import NativeKernels


@dataclass(frozen=True, slots=True)
class Stack:
    """One module's adapters, by slot. Rows of `a` and `b` at or above a slot's rank are zero."""

    a: Tensor  # [slots, max_rank, in]
    b: Tensor  # [slots, max_rank, out]
    ranks: Tensor  # [slots] int32, on the host; 0: the slot's adapter leaves this module alone
    device_ranks: Tensor | None = None  # the same beside a and b; None: they are on the host too


class LowRankBackend(Protocol):
    """One implementation of shrink and expand.

    `prepare` is called once per step and its result handed to every `add` of that step, so that
    what depends on the segments alone is worked out once, not per module.
    """

    name: str

    def prepare(self, segments: SegmentPlan) -> Any:
        """Whatever this backend wants to know of the step's segments.

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

    def prepare(self, segments: SegmentPlan) -> SegmentPlan:
        return segments

    def hook(self, stacks: Sequence[Stack]) -> None:
        return None

    def add(
        self, x: Tensor, stacks: Sequence[Stack], outs: Sequence[Tensor], prepared: SegmentPlan
    ) -> None:
        check_cover(x, prepared)
        for stack, out in zip(stacks, outs, strict=True):
            for item in prepared.items:
                rank = 0 if item.slot == NO_ADAPTER else int(stack.ranks[item.slot])
                if rank:
                    rows = slice(item.start, item.end)
                    y = x[rows] @ stack.a[item.slot, :rank].T
                    out[rows] += y @ stack.b[item.slot, :rank]


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
